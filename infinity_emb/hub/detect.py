"""Detect the kind of a model from its files: embedder, reranker, classifier, sparse, multi-vector.

Sources: sentence-transformers' `config_sentence_transformers.json` (`model_type`) and `modules.json`, and
transformers' `config.json` (`architectures`, `id2label`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from infinity_emb.config.model_options import ModelOptions
from infinity_emb.errors import StartupError
from infinity_emb.hub.file_selection import has_weights
from infinity_emb.types import ModelKind

_KINDS_BY_MODEL_TYPE = {
    "SentenceTransformer": ModelKind.embedder,
    "CrossEncoder": ModelKind.reranker,
    "SparseEncoder": ModelKind.sparse,
    "MultiVectorEncoder": ModelKind.multivector,
    "ColBERT": ModelKind.multivector,  # as PyLate saves it
}
_KINDS_BY_MODULE = {
    "LogitScore": ModelKind.reranker,
    "SpladePooling": ModelKind.sparse,
    "SparseStaticEmbedding": ModelKind.sparse,
    "SparseAutoEncoder": ModelKind.sparse,
    "MultiVectorMask": ModelKind.multivector,
}


def choose_kind(options: ModelOptions, folder: Path) -> ModelKind:
    """Return the kind that the options name, else detect it from the model's files. Raise StartupError."""
    return (
        detect_kind(folder, options.model_name_or_path)
        if options.model_kind is ModelKind.auto
        else options.model_kind
    )


def detect_kind(folder: Path, name: str = "") -> ModelKind:
    """Return the kind of the model in a folder. Raises StartupError for a file that is not a JSON object.

    name: decides if the files do not: a language model named a reranker is one.
    A sequence classifier is a reranker if it has one label and a classifier otherwise (the default of
    transformers is two labels); everything else is an embedder.
    """
    config = read_object(folder / "config.json")
    architectures = [str(each) for each in config.get("architectures") or ()]
    stated = read_object(folder / "config_sentence_transformers.json").get("model_type")
    if stated == "CrossEncoder" or (stated is None and _is_classifier(folder, architectures)):
        return ModelKind.classifier if _num_labels(config, architectures) > 1 else ModelKind.reranker
    if isinstance(stated, str) and stated in _KINDS_BY_MODEL_TYPE and stated != "SentenceTransformer":
        return _KINDS_BY_MODEL_TYPE[stated]
    for module in list_module_names(folder):
        if module in _KINDS_BY_MODULE:
            return _KINDS_BY_MODULE[module]
    if _is_late_interaction(folder, architectures):
        return ModelKind.multivector
    is_plain_decoder = not list_module_names(folder) and any(
        each.endswith("ForCausalLM") for each in architectures
    )
    if is_plain_decoder and "rerank" in name.lower():
        return ModelKind.reranker
    return ModelKind.embedder


def list_module_names(folder: Path) -> list[str]:
    """Return the class names of the pipeline's modules, in order; [] without a `modules.json`."""
    return [str(each.get("type", "")).rpartition(".")[2] for each in read_modules(folder)]


def lacks_weights(folder: Path) -> bool:
    """Return true if the folder has the configuration of a network without its torch weights.

    Weights of other modules, in subfolders, do not count.
    """
    folders = {folder / str(each.get("path", "")) for each in read_modules(folder)} or {folder}
    networks = (each for each in folders if "model_type" in read_object(each / "config.json"))
    return not all(has_weights(each) for each in networks)


def read_modules(folder: Path) -> list[dict[str, Any]]:
    """Return the entries of `modules.json`, [] if there is no such file. Raises StartupError."""
    path = folder / "modules.json"
    if not path.exists():
        return []
    modules = _read_json(path)
    if not isinstance(modules, list) or not all(isinstance(each, dict) for each in modules):
        raise StartupError(f"{path} is not a list of modules; download or save the model again")
    return modules


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object, {} if the file does not exist. Raises StartupError for anything else."""
    if not path.exists():
        return {}
    value = _read_json(path)
    if not isinstance(value, dict):
        raise StartupError(f"{path} is not a JSON object; download or save the model again")
    return value


def _is_classifier(folder: Path, architectures: list[str]) -> bool:
    return not list_module_names(folder) and any("SequenceClassification" in each for each in architectures)


def _num_labels(config: dict[str, Any], architectures: list[str]) -> int:
    """Count labels like sentence-transformers: one, unless the checkpoint has a classification head."""
    if not any("SequenceClassification" in each for each in architectures):
        return 1
    return len(config.get("id2label") or {}) or int(config.get("num_labels", 2))


def _is_late_interaction(folder: Path, architectures: list[str]) -> bool:
    """Return true for Stanford's ColBERT, and for transformers' models with a vector per image patch."""
    has_stanford_file = (folder / "artifact.metadata").exists()
    return has_stanford_file or any("ForRetrieval" in each or "ColBERT" in each for each in architectures)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as exc:
        raise StartupError(f"{path} is not valid JSON ({exc}); download or save the model again") from exc
