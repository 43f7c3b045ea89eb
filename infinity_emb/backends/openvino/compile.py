"""Compile a graph with OpenVINO, once for each device, and keep the result in the cache."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from infinity_emb.backends.external.graph_files import ONNX
from infinity_emb.backends.external.onnx_weights import find_weight_files
from infinity_emb.backends.openvino.runtime import core, openvino
from infinity_emb.backends.out_of_memory import is_out_of_memory
from infinity_emb.errors import StartupError, one_line
from infinity_emb.storage.artifacts import CachedArtifact, artifact_dir, get_file_stats, reuse_or_fill
from infinity_emb.storage.keyed_file import make_keyed_name

logger = logging.getLogger("infinity_emb")


def compile_graph(
    graph: Path, device: str, properties: Mapping[str, str | int | bool]
) -> openvino.CompiledModel:
    """Compile a graph, or load it from the cache of an earlier start.

    graph: an ONNX file, or OpenVINO's .xml.
    A cache that cannot be written or read only costs time, unless it is needed for links to weights. Raises
    StartupError for a graph that OpenVINO cannot read or compile, and MemoryError.
    """
    parts = _find_parts(graph)
    folder = choose_compiled_folder(parts, device, properties)
    if _are_in_one_folder(parts):
        return _compile_or_load(graph, device, properties, folder)
    return _get_links(parts).open_or_rebuild(lambda link: _compile_or_load(link, device, properties, folder))


def _compile_or_load(
    graph: Path, device: str, properties: Mapping[str, str | int | bool], folder: Path
) -> openvino.CompiledModel:
    """Compile with the cache in `folder`, or without one. Raises as `compile_graph` does."""
    try:
        with reuse_or_fill(folder) as cache:
            return read_and_compile(graph, device, {**properties, "CACHE_DIR": str(cache)})
    except (OSError, RuntimeError) as exc:  # OpenVINO's own errors are RuntimeErrors
        _check_memory(exc)
        reason = one_line(exc, 400)
    logger.warning("compiling %s without the cache %s: %s", graph.name, folder, reason)
    try:
        return read_and_compile(graph, device, properties)
    except RuntimeError as exc:
        _check_memory(exc)
        raise StartupError(f"OpenVINO cannot compute {graph} on {device}: {one_line(exc, 400)}") from exc


def read_and_compile(
    graph: Path, device: str, properties: Mapping[str, str | int | bool]
) -> openvino.CompiledModel:
    """Compile a graph with OpenVINO. Raises what the library raises."""
    return core().compile_model(core().read_model(str(graph)), device, dict(properties))


def choose_compiled_folder(
    parts: Sequence[Path], device: str, properties: Mapping[str, str | int | bool]
) -> Path:
    """Return the cache folder; its name depends on everything that changes the outputs or the compiled code.

    OpenVINO compares the structure of a graph, and may not notice that its weights have changed.
    """
    return artifact_dir("openvino") / make_keyed_name(
        parts[0].name,
        get_file_stats(parts),
        openvino.__version__,
        core().get_property(device, "FULL_DEVICE_NAME"),
        properties["INFERENCE_PRECISION_HINT"],
    )


def _find_parts(graph: Path) -> list[Path]:
    """Return the graph and the files of its weights."""
    names = find_weight_files(graph) if graph.suffix == ONNX.suffix else [f"{graph.stem}.bin"]
    return [graph, *(path for path in (graph.parent / name for name in names) if path.is_file())]


def _are_in_one_folder(parts: Sequence[Path]) -> bool:
    """Return true if no weights of an ONNX graph are links to another folder.

    OpenVINO 2026.4 refuses such links; in the cache of huggingface_hub all files are links.
    """
    graph, *weights = parts
    home = graph.parent.resolve()
    return graph.suffix != ONNX.suffix or all(path.resolve().is_relative_to(home) for path in weights)


def _get_links(parts: Sequence[Path]) -> CachedArtifact:
    """Return a folder in the cache with links to the files."""
    name = parts[0].name
    return CachedArtifact(
        action=f"preparing {name} for OpenVINO",
        folder=artifact_dir("openvino") / make_keyed_name(name, "links", *get_file_stats(parts)),
        main_file=name,
        make=lambda folder: _link(parts, folder),
    )


def _link(parts: Sequence[Path], folder: Path) -> None:
    """Create hard links to the files in the folder; copy them if it is on another disk."""
    for path in parts:
        target = folder / path.relative_to(parts[0].parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path.resolve(), target)
        except OSError:
            shutil.copyfile(path, target)


def _check_memory(exc: Exception) -> None:
    """Raise MemoryError if memory was full: the model may fit once another one is unloaded."""
    if is_out_of_memory(exc):
        raise MemoryError(str(exc)) from exc
