"""List the models in the hub's cache, without network access."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from infinity_emb.config.model_options import DEFAULT_MODEL
from infinity_emb.errors import StartupError, one_line
from infinity_emb.hub.detect import detect_kind
from infinity_emb.hub.file_selection import name_missing_part
from infinity_emb.hub.resolve import find_bundled_model
from infinity_emb.types import ModelKind

if TYPE_CHECKING:
    from huggingface_hub import CachedRepoInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedModel:
    """One model on this machine.

    kind: None if the files do not tell.
    problem: what its latest revision lacks, or "".
    """

    name: str
    size_bytes: int
    num_revisions: int
    kind: ModelKind | None
    problem: str
    last_used: datetime
    path: Path


@dataclass(frozen=True, slots=True)
class CacheListing:
    """The models of a cache, most recently used first, and warnings about what cannot be read."""

    folder: Path
    models: list[CachedModel]
    warnings: list[str]


def list_cached_models() -> CacheListing:
    """Read the cache that HF_HOME or HF_HUB_CACHE names; the bundled default model counts too."""
    from huggingface_hub import CacheNotFound, constants, scan_cache_dir

    folder = Path(constants.HF_HUB_CACHE)
    models, warnings = [], []
    try:
        cache = scan_cache_dir(folder)
        models = [_describe(each) for each in cache.repos if each.repo_type == "model"]
        # Libraries keep other files beside the models, such as transformers' version.txt.
        found = [one_line(each) for each in cache.warnings]
        warnings = [each for each in found if "path is not a directory" not in each]
    except CacheNotFound:
        pass
    bundled = find_bundled_model()
    if bundled is not None:
        models.append(_describe_package(bundled.path))
    models.sort(key=lambda each: each.last_used, reverse=True)
    return CacheListing(folder, models, warnings)


def _describe(repo: CachedRepoInfo) -> CachedModel:
    revisions = sorted(repo.revisions, key=lambda each: ("main" in each.refs, each.last_modified))
    problem, kind = "no files", None
    if revisions:
        folder = revisions[-1].snapshot_path
        names = [each.file_path.relative_to(folder).as_posix() for each in revisions[-1].files]
        missing = name_missing_part(names, graph_suffices=True)
        problem = f"incomplete: no {missing}" if missing else ""
        kind = _find_kind(folder, repo.repo_id)
    return CachedModel(
        name=repo.repo_id,
        size_bytes=repo.size_on_disk,
        num_revisions=len(revisions),
        kind=kind,
        problem=problem,
        last_used=datetime.fromtimestamp(repo.last_accessed, timezone.utc),
        path=revisions[-1].snapshot_path if revisions else repo.repo_path,
    )


def _describe_package(folder: Path) -> CachedModel:
    stats = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return CachedModel(
        name=DEFAULT_MODEL,
        size_bytes=sum(stat.st_size for stat in stats),
        num_revisions=1,
        kind=_find_kind(folder, DEFAULT_MODEL),
        problem="",
        last_used=datetime.fromtimestamp(max(stat.st_atime for stat in stats), timezone.utc),
        path=folder,
    )


def _find_kind(folder: Path, name: str) -> ModelKind | None:
    if not any((folder / each).exists() for each in ("config.json", "modules.json")):
        return None
    try:
        return detect_kind(folder, name)
    except StartupError:
        return None
