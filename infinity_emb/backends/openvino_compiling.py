"""A graph's file → what computes it, compiled once for each device and kept in the cache.

Knows nothing of models or of torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

from infinity_emb.backends.made_once import folder_of_engine
from infinity_emb.backends.openvino_library import core, openvino
from infinity_emb.errors import StartupError

logger = logging.getLogger("infinity_emb")


def compile_graph(
    graph: Path, device: str, properties: Mapping[str, str | int | bool]
) -> openvino.CompiledModel:
    """The graph compiled now, or as an earlier start has kept it.

    graph: an ONNX file, or OpenVINO's .xml.
    A cache that cannot be written or read costs time and nothing else. Raises StartupError for a graph that
    OpenVINO cannot read or compile.
    """
    folder = _folder_of(graph, device, properties)
    try:
        return _compile_kept(graph, device, properties, folder)
    except (OSError, RuntimeError) as exc:  # OpenVINO's own errors are RuntimeErrors
        reason = _one_line(exc)
    logger.warning("compiling %s without the cache %s: %s", graph.name, folder, reason)
    try:
        return _compile(graph, device, properties)
    except RuntimeError as exc:
        raise StartupError(f"OpenVINO cannot compute {graph} on {device}: {_one_line(exc)}") from exc


def _compile_kept(
    graph: Path, device: str, properties: Mapping[str, str | int | bool], folder: Path
) -> openvino.CompiledModel:
    """Processes that start together each write into a folder of their own, and the first one stays."""
    if folder.exists():
        return _compile(graph, device, {**properties, "CACHE_DIR": str(folder)})
    draft = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.draft")
    try:
        draft.mkdir(parents=True)
        compiled = _compile(graph, device, {**properties, "CACHE_DIR": str(draft)})
        with contextlib.suppress(OSError):  # somebody else was first
            os.replace(draft, folder)
        return compiled
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _compile(graph: Path, device: str, properties: Mapping[str, str | int | bool]) -> openvino.CompiledModel:
    return core().compile_model(core().read_model(str(graph)), device, dict(properties))


def _folder_of(graph: Path, device: str, properties: Mapping[str, str | int | bool]) -> Path:
    """Another one for whatever makes other numbers or other code.

    OpenVINO looks at a graph's structure, and need not see that the weights beside it are others.
    """
    files = sorted(path for path in graph.parent.glob(f"{graph.stem}.*") if path.is_file())
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    key = repr(
        (
            stats,
            openvino.__version__,
            core().get_property(device, "FULL_DEVICE_NAME"),
            properties["INFERENCE_PRECISION_HINT"],
        )
    )
    return folder_of_engine("openvino") / hashlib.sha256(key.encode()).hexdigest()[:32]


def _one_line(exc: Exception) -> str:
    return " ".join(str(exc).split())[:400]
