"""Refuse a pipeline whose modules lack files that they are built from."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from infinity_emb.errors import StartupError
from infinity_emb.hub.detect import detect_kind, read_object
from infinity_emb.hub.modules import ModuleFolder
from infinity_emb.types import ModelKind

logger = logging.getLogger("infinity_emb")

_NUMBERED_MODULE = re.compile(r"\d+_[A-Z]\w*")
_CONFIG = ("config.json",)
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# By class: the files that a module needs, each with its alternatives.
_NEEDED_FILES: Mapping[str, Sequence[Sequence[str]]] = {
    "Transformer": [("config.json", "adapter_config.json")],
    "MLMTransformer": [("config.json", "adapter_config.json")],
    "Pooling": [_CONFIG],
    "Dense": [_CONFIG, _WEIGHTS],
    "LayerNorm": [_CONFIG, _WEIGHTS],
    "WordWeights": [_CONFIG],
    "BoW": [_CONFIG],
    "WeightedLayerPooling": [_CONFIG, _WEIGHTS],
    "LogitScore": [_CONFIG],
    "SpladePooling": [_CONFIG],
    "SparseAutoEncoder": [_CONFIG, _WEIGHTS],
    "MultiVectorMask": [_CONFIG],
    "CNN": [("cnn_config.json",), _WEIGHTS],
    "LSTM": [("lstm_config.json",), _WEIGHTS],
    "WordEmbeddings": [("wordembedding_config.json",), _WEIGHTS],
    "StaticEmbedding": [("tokenizer.json",), _WEIGHTS],
    "SparseStaticEmbedding": [("tokenizer.json",)],
}
# The configuration of a Transformer, which has one of several names.
_TRANSFORMER_CONFIGS = "sentence_*_config.json"


def check_modules(folder: Path, modules: Sequence[ModuleFolder], *, is_pooling_given: bool) -> None:
    """Raise StartupError naming the first file that a module lacks.

    is_pooling_given: an option says how token vectors are pooled, so that no module has to.
    """
    if not modules:
        _check_no_modules(folder, is_pooling_given=is_pooling_given)
    kind = detect_kind(folder)
    for module in modules:
        for names in _list_needed_files(module, kind):
            if not any((module.path / name).is_file() for name in names):
                raise StartupError(
                    f"{module.path / names[0]} is missing, though modules.json names the module"
                    f" {module.class_name}; copy the whole folder, subfolders included"
                )
        if module.class_name == "Transformer" and not any(module.path.glob(_TRANSFORMER_CONFIGS)):
            _report_transformer_config(folder, module.path / "sentence_bert_config.json", kind)


def _list_needed_files(module: ModuleFolder, kind: ModelKind) -> Sequence[Sequence[str]]:
    if module.class_name == "Normalize" and kind is ModelKind.multivector:
        return [_CONFIG]  # without it, it would normalize the vector of a whole text
    return _NEEDED_FILES.get(module.class_name, ())


def _check_no_modules(folder: Path, *, is_pooling_given: bool) -> None:
    """Refuse module folders without the file that defines their order."""
    path = folder / "modules.json"
    if path.exists():
        raise StartupError(f"{path} lists no modules; download or save the model again")
    found = sorted(
        path.name for path in folder.iterdir() if _NUMBERED_MODULE.fullmatch(path.name) and path.is_dir()
    )
    if found and not is_pooling_given:
        raise StartupError(
            f"{path} is missing, though there are the module folders {', '.join(found)};"
            " copy it, too, or choose --pooling-method to serve the network without them"
        )


def _report_transformer_config(folder: Path, missing: Path, kind: ModelKind) -> None:
    """Refuse a model whose network depends on the missing file, and warn if only its limit does.

    sentence-transformers always writes the file; a folder that was written by hand may do without it.
    """
    if not read_object(folder / "config_sentence_transformers.json").get("__version__"):
        return
    if kind is not ModelKind.embedder:
        raise StartupError(
            f"{missing} is missing, though modules.json names a Transformer, and a {kind} model needs it;"
            " copy the whole folder"
        )
    logger.warning(
        "%s is missing: texts are cut at the limit of the tokenizer, which may differ from the model's; copy"
        " the whole folder",
        missing,
    )
