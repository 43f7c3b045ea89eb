"""Choose, by name, the files of a repository or folder that a model is loaded from."""

from __future__ import annotations

import pathlib
import posixpath
from collections.abc import Iterable

# .model, .tiktoken and .codes are tokenizers (sentencepiece, Qwen, PhoBERT); .jinja is a chat template.
_NEEDED_SUFFIXES = (".json", ".txt", ".py", ".model", ".tiktoken", ".codes", ".jinja", ".safetensors")
# BGE-M3's two additional heads, and the metadata of Stanford's ColBERT.
_NEEDED_NAMES = ("sparse_linear.pt", "colbert_linear.pt", "artifact.metadata")
_GRAPH_SUFFIXES = (".onnx", ".xml")  # of OpenVINO
# Folders whose json, txt or safetensors belong to another runtime, to a data set or to a training run.
_FOREIGN_FOLDERS = frozenset(
    {"onnx", "openvino", "tf", "saved_model", "flax", "coreml", "mlx", "gguf", "images"}
    | {"data", "dataset", "datasets", "runs", "checkpoints"}
)


def select_needed_files(names: Iterable[str]) -> list[str]:
    """Choose what a torch sentence-transformers model reads.

    names: paths of all files of a repository, separated by "/".

    Returns the paths to download, sorted: configs, tokenizers, code, weights and BGE-M3's heads. Weights are
    safetensors files, and `pytorch_model*.bin` only in folders without safetensors.
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


def count_weight_bytes(folder: pathlib.Path) -> int:
    """Return the size on disk of the weights that torch reads."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return sum(files[name].stat().st_size for name in select_needed_files(files) if is_weights(name))


def has_weights(folder: pathlib.Path) -> bool:
    """Return true if the folder has torch weights, or an adapter that refers to them."""
    return any(is_weights(path.name) or path.name == "adapter_config.json" for path in folder.iterdir())


def is_graph(name: str) -> bool:
    """Return true for a graph that libraries other than torch compute."""
    # OpenVINO's tokenizers are graphs, too.
    return name.endswith(_GRAPH_SUFFIXES) and not name.endswith("tokenizer.xml")


def name_missing_part(names: Iterable[str], graph_suffices: bool) -> str | None:
    """Name what is missing in a repository with these files to load a model; None if nothing is.

    graph_suffices: whether a graph of ONNX or OpenVINO may take the place of weights.
    """
    names = list(names)
    needed = select_needed_files(names)
    if not {"config.json", "modules.json"} & set(needed):
        return "config.json or modules.json"
    has_graph = any(is_graph(name) for name in names)
    if any(is_weights(name) for name in needed) or (graph_suffices and has_graph):
        return None
    missing = "torch weights (*.safetensors or pytorch_model*.bin)"
    if has_graph:
        return f"{missing}, but graphs, which --engine onnx and --engine openvino compute"
    return missing


def _is_foreign(name: str) -> bool:
    folders = posixpath.dirname(name).lower().split("/")
    return any(folder in _FOREIGN_FOLDERS or folder.startswith("checkpoint-") for folder in folders)


def is_weights(name: str) -> bool:
    """Return true for a file of torch weights."""
    return name.endswith(".safetensors") or _is_pickle(name)


def _is_pickle(name: str) -> bool:
    base = posixpath.basename(name)
    return base.startswith("pytorch_model") and base.endswith(".bin")
