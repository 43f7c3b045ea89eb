"""Check that the packages that a model needs are installed, before its weights are downloaded."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path

from infinity_emb.errors import StartupError
from infinity_emb.hub.detect import read_object
from infinity_emb.hub.modules import list_modules

_QUANTIZATION_MODULE = "infinity_emb.backends.torch.quantized_weights"
_SENTENCEPIECE_NAMES = ("sentencepiece.bpe.model", "spiece.model", "spm.model", "tokenizer.model")
# Any of them is read in place of a SentencePiece file.
_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json")
# The first byte of a SentencePiece file; those of tiktoken, which have the same names, are text.
_SENTENCEPIECE_BYTE = b"\n"


def is_installed(package: str) -> bool:
    """Return true if a package can be imported. Nothing is imported to find out."""
    return importlib.util.find_spec(package) is not None


def check_libraries(engine: str, libraries: Iterable[str], extra: str) -> None:
    """Raise StartupError for the first library of an engine that is not installed."""
    missing = next((library for library in libraries if not is_installed(library)), None)
    if missing is not None:
        raise StartupError(
            f"--engine {engine} needs a package that is not installed ({missing});"
            f" install it with: pip install 'infinity-emb[{extra}]'"
        )


def check_model_packages(name: str, folder: Path) -> None:
    """Raise StartupError for a package that an adapter, a tokenizer or quantized weights need.

    name: of the model, for the message.
    """
    for path in dict.fromkeys([folder, *(module.path for module in list_modules(folder))]):
        if need := _find_need(path):
            raise StartupError(f"model {name!r} {need}")


def _find_need(folder: Path) -> str:
    """Describe the package that a module's files need and that is not installed, or return ""."""
    adapter = folder / "adapter_config.json"
    if adapter.is_file() and not is_installed("peft"):
        base = read_object(adapter).get("base_model_name_or_path")
        return (
            f"is an adapter of {base!r}, which the package peft loads; install it with:"
            " pip install 'infinity-emb[peft]'"
        )
    tokenizer = _find_sentencepiece_tokenizer(folder)
    if tokenizer and not is_installed("sentencepiece"):
        return (
            f"has its tokenizer as a SentencePiece file ({tokenizer}), which the package sentencepiece reads;"
            " install it with: pip install 'infinity-emb[sentencepiece]'"
        )
    quantization = read_object(folder / "config.json").get("quantization_config")
    if not isinstance(quantization, dict):
        return ""
    return str(importlib.import_module(_QUANTIZATION_MODULE).find_missing_package(quantization))


def _find_sentencepiece_tokenizer(folder: Path) -> str:
    """Return the name of a SentencePiece file that has no other vocabulary beside it, or ""."""
    if any((folder / name).exists() for name in _VOCABULARIES):
        return ""
    found = (name for name in _SENTENCEPIECE_NAMES if (folder / name).is_file())
    return next((name for name in found if _read_first_byte(folder / name) == _SENTENCEPIECE_BYTE), "")


def _read_first_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1)
