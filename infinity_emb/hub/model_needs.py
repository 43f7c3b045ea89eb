"""Find out what serving a model takes, from its file list and configurations, without downloading weights."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from infinity_emb.errors import StartupError
from infinity_emb.hub.config_files import is_config, walk_fields
from infinity_emb.hub.detect import detect_kind, list_module_names, read_object
from infinity_emb.hub.failures import explain_failure, explain_offline, list_failures
from infinity_emb.hub.file_selection import is_graph, is_weights, name_missing_part, select_needed_files
from infinity_emb.hub.resolve import Listing, ModelFiles, find_on_this_machine, list_repository
from infinity_emb.hub.weight_files import count_parameters
from infinity_emb.types import ModelKind

_MAX_CONFIG_BYTES = 2**20  # larger configurations are not downloaded
_ITEM_BYTES = {"float64": 8, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelNeeds:
    """Requirements of a model.

    sizes: file that torch reads → bytes, even if a graph replaces the weights.
    download_bytes: size of what is not on this machine yet.
    num_parameters: of the weights that torch reads; 0 if there are none.
    is_static: a table of token vectors, which needs no torch.
    extras: of this package, besides `server`.
    own_code: whether the repository names its own classes, which need --trust-remote-code.
    """

    name: str
    source: Literal["folder", "package", "cache", "hub"]
    revision: str | None
    kind: ModelKind
    sizes: Mapping[str, int]
    download_bytes: int
    num_parameters: int
    graphs: tuple[str, ...]
    is_static: bool
    extras: tuple[str, ...]
    own_code: bool


def find_needs(model_id: str, revision: str | None = None) -> ModelNeeds:
    """Inspect a model on this machine, or else on the hub. Raises StartupError if there is none."""
    found = find_on_this_machine(model_id, revision)
    return _read_needs(model_id, found) if found else _ask_hub(model_id, revision)


def _read_needs(model_id: str, files: ModelFiles) -> ModelNeeds:
    paths = {path.relative_to(files.path).as_posix(): path for path in files.path.rglob("*")}
    sizes = {name: path.stat().st_size for name, path in paths.items() if path.is_file()}
    if missing := name_missing_part(sizes, graph_suffices=True):
        raise StartupError(f"{str(files.path)!r} is not a model that can be served: it has no {missing}")
    counts = [count_parameters(paths[name]) for name in select_needed_files(sizes) if is_weights(name)]
    known = [count for count in counts if count is not None]
    return _describe(
        model_id,
        files.path,
        sizes,
        source="cache" if files.source == "hub" else files.source,
        revision=files.revision,
        download_bytes=0,
        num_parameters=sum(known) if len(known) == len(counts) else None,
    )


def _ask_hub(model_id: str, revision: str | None) -> ModelNeeds:
    from huggingface_hub import constants, is_offline_mode

    constants.HF_HUB_DISABLE_TELEMETRY = True
    if is_offline_mode():
        raise StartupError(explain_offline(model_id, revision))
    with tempfile.TemporaryDirectory() as folder:
        try:
            listing = list_repository(model_id, revision, graph_suffices=True)
            _fetch_configs(model_id, listing, folder)
        except list_failures() as exc:
            raise StartupError(explain_failure(model_id, revision, exc)) from exc
        sizes = {name: size or 0 for name, size in listing.sizes.items()}
        return _describe(
            model_id,
            Path(folder),
            sizes,
            source="hub",
            revision=listing.commit,
            download_bytes=sum(sizes[name] for name in select_needed_files(sizes)),
            num_parameters=listing.num_parameters,
        )


def _fetch_configs(model_id: str, listing: Listing, folder: str) -> None:
    from huggingface_hub import hf_hub_download

    for name in select_needed_files(listing.sizes):
        if is_config(Path(name).name) and (listing.sizes[name] or 0) <= _MAX_CONFIG_BYTES:
            hf_hub_download(model_id, name, revision=listing.commit, local_dir=folder)


def _describe(
    name: str,
    folder: Path,
    sizes: Mapping[str, int],
    *,
    source: Literal["folder", "package", "cache", "hub"],
    revision: str | None,
    download_bytes: int,
    num_parameters: int | None,
) -> ModelNeeds:
    needed = {each: sizes[each] for each in select_needed_files(sizes)}
    weights = sum(size for each, size in needed.items() if is_weights(each))
    modules = list_module_names(folder)
    config = read_object(folder / "config.json")
    is_static = modules[:1] == ["StaticEmbedding"] or config.get("model_type") == "model2vec"
    return ModelNeeds(
        name=name,
        source=source,
        revision=revision,
        kind=detect_kind(folder, name),
        sizes=needed,
        download_bytes=download_bytes,
        num_parameters=weights // _item_bytes(config) if num_parameters is None else num_parameters,
        graphs=tuple(sorted(filter(is_graph, sizes))),
        is_static=is_static,
        extras=tuple(_list_extras(folder, is_static=is_static, has_weights=bool(weights))),
        own_code=any("auto_map" in field.keys for field in walk_fields(folder)),
    )


def _item_bytes(config: Mapping[str, object]) -> int:
    return _ITEM_BYTES.get(str(config.get("dtype") or config.get("torch_dtype")), 4)


def _list_extras(folder: Path, *, is_static: bool, has_weights: bool) -> Iterable[str]:
    if not is_static:
        yield "torch"
        if not has_weights:
            yield "onnx"
    processor = {
        **read_object(folder / "processor_config.json"),
        **read_object(folder / "preprocessor_config.json"),
    }
    if {"image_processor_type", "image_processor", "image_mean"} & processor.keys():
        yield "vision"
    if {"feature_extractor_type", "feature_extractor"} & processor.keys():
        yield "audio"
