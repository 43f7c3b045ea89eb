"""A graph's file → what computes it, compiled once for each device and kept in the cache.

Knows nothing of models.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from infinity_emb.backends.graph_files import ONNX
from infinity_emb.backends.made_once import MadeOnce, draft_beside, folder_of_engine, stats_of
from infinity_emb.backends.onnx_weights import weight_files
from infinity_emb.backends.openvino_library import core, openvino
from infinity_emb.backends.torch_device import is_out_of_memory
from infinity_emb.errors import StartupError, one_line

logger = logging.getLogger("infinity_emb")


def compile_graph(
    graph: Path, device: str, properties: Mapping[str, str | int | bool]
) -> openvino.CompiledModel:
    """The graph compiled now, or as an earlier start has kept it.

    graph: an ONNX file, or OpenVINO's .xml.
    A cache that cannot be written or read costs time and nothing else, unless it is needed for links to
    weights. Raises StartupError for a graph that OpenVINO cannot read or compile, and MemoryError.
    """
    parts = _parts_of(graph)
    folder = _folder_of(parts, device, properties)
    if _lie_in_one_folder(parts):
        return _compile_or_take(graph, device, properties, folder)
    return _linked(parts).opened(lambda link: _compile_or_take(link, device, properties, folder))


def _compile_or_take(
    graph: Path, device: str, properties: Mapping[str, str | int | bool], folder: Path
) -> openvino.CompiledModel:
    """folder: where it is kept. Raises as `compile_graph` does."""
    try:
        return _compile_kept(graph, device, properties, folder)
    except (OSError, RuntimeError) as exc:  # OpenVINO's own errors are RuntimeErrors
        _check_memory(exc)
        reason = one_line(exc, 400)
    logger.warning("compiling %s without the cache %s: %s", graph.name, folder, reason)
    try:
        return _compile(graph, device, properties)
    except RuntimeError as exc:
        _check_memory(exc)
        raise StartupError(f"OpenVINO cannot compute {graph} on {device}: {one_line(exc, 400)}") from exc


def _compile_kept(
    graph: Path, device: str, properties: Mapping[str, str | int | bool], folder: Path
) -> openvino.CompiledModel:
    """Processes that start together each write into a folder of their own, and the first one stays."""
    if folder.exists():
        return _compile(graph, device, {**properties, "CACHE_DIR": str(folder)})
    with draft_beside(folder) as draft:
        compiled = _compile(graph, device, {**properties, "CACHE_DIR": str(draft)})
        with contextlib.suppress(OSError):  # somebody else was first
            os.replace(draft, folder)
        return compiled


def _compile(graph: Path, device: str, properties: Mapping[str, str | int | bool]) -> openvino.CompiledModel:
    return core().compile_model(core().read_model(str(graph)), device, dict(properties))


def _folder_of(parts: Sequence[Path], device: str, properties: Mapping[str, str | int | bool]) -> Path:
    """Another one for whatever makes other numbers or other code.

    OpenVINO looks at a graph's structure, and need not see that the weights beside it are others.
    """
    return _folder_for(
        stats_of(parts),
        openvino.__version__,
        core().get_property(device, "FULL_DEVICE_NAME"),
        properties["INFERENCE_PRECISION_HINT"],
    )


def _folder_for(*key: object) -> Path:
    return folder_of_engine("openvino") / hashlib.sha256(repr(key).encode()).hexdigest()[:32]


def _parts_of(graph: Path) -> list[Path]:
    """The graph, and the files beside it that hold its weights."""
    names = weight_files(graph) if graph.suffix == ONNX.suffix else [f"{graph.stem}.bin"]
    return [graph, *(path for path in (graph.parent / name for name in names) if path.is_file())]


def _lie_in_one_folder(parts: Sequence[Path]) -> bool:
    """Whether OpenVINO (2026.4) reads them: it refuses weights of an ONNX graph that a link leads out of its
    folder. In the cache of huggingface_hub all files are links to another one."""
    graph, *weights = parts
    home = graph.parent.resolve()
    return graph.suffix != ONNX.suffix or all(path.resolve().is_relative_to(home) for path in weights)


def _linked(parts: Sequence[Path]) -> MadeOnce:
    """The same files in a folder of our own."""
    name = parts[0].name
    return MadeOnce(
        model=name,
        deed="laid out for OpenVINO",
        folder=_folder_for("links", *stats_of(parts)),
        main_file=name,
        make=lambda folder: _link(parts, folder),
    )


def _link(parts: Sequence[Path], folder: Path) -> None:
    """Links that are files of their own, which lead nowhere; copies where there are none to another disk."""
    for path in parts:
        target = folder / path.relative_to(parts[0].parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path.resolve(), target)
        except OSError:
            shutil.copyfile(path, target)


def _check_memory(exc: Exception) -> None:
    """Raises MemoryError for lack of it: the model may fit where another one is unloaded."""
    if is_out_of_memory(exc):
        raise MemoryError(str(exc)) from exc
