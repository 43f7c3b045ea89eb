"""Explain why sentence-transformers could not load a model."""

from __future__ import annotations

import re
from pathlib import Path

from transformers import AutoTokenizer

from infinity_emb.backends.torch.own_code import OwnCodeError
from infinity_emb.config.model_options import ModelOptions
from infinity_emb.errors import StartupError, one_line
from infinity_emb.hub.config_files import walk_fields
from infinity_emb.hub.contents_check import explain_unreadable_weights
from infinity_emb.hub.detect import lacks_weights, read_object
from infinity_emb.hub.file_selection import is_graph
from infinity_emb.hub.modules import list_modules
from infinity_emb.hub.repository import list_files
from infinity_emb.hub.resolve import ModelFiles
from infinity_emb.preprocessing.fast_tokenizer import open_tokenizer

# Python's message for a configuration that lacks values.
_MISSING_VALUES = re.compile(r"(\w+)\.__init__\(\) missing \d+ required positional arguments?: (.+)")
_LOOKED_UP = re.compile(r"^(?:KeyError: |AttributeError: .*has no attribute )'([^']+)'")
_OF_TOKENIZERS = re.compile("(?i)processing class|tokeniz|sequence")
# What transformers raises for files that do not fit together.
_LIBRARY_ERRORS = (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError)
_VOCABULARIES = ("vocab.txt", "vocab.json", "*.model", "*.tiktoken")


def describe_failure(options: ModelOptions, files: ModelFiles, exc: Exception) -> str:
    """Return one line: the model, what is wrong with it, and the remedy."""
    name, text = f"model {options.model_name_or_path!r}", one_line(exc)
    if isinstance(exc, OwnCodeError) or "trust_remote_code" in text:
        found = f": {text[:400]}" if isinstance(exc, OwnCodeError) else ""
        return (
            f"{name} comes with its own Python code; --trust-remote-code runs it with your rights, so read it"
            f" first{found}"
        )
    if (files.path / "adapter_config.json").is_file():
        base = read_object(files.path / "adapter_config.json").get("base_model_name_or_path")
        name += f", an adapter of {base!r}, which must be on this machine," if base else ", an adapter,"
    if broken := explain_unreadable_weights(files.path):
        return broken
    if missing := _describe_missing_weights(files):
        return f"{name} has no torch weights, but {missing}"
    # The tokenizers library raises nothing narrower than an Exception.
    is_of_tokenizer = type(exc) is Exception or _OF_TOKENIZERS.search(text)
    if is_of_tokenizer and (broken := _describe_broken_tokenizer(files.path)):
        return f"{name} {broken}"
    if missing := _describe_missing_values(files.path, text):
        return f"{name} {missing}"
    if unknown := _describe_unknown_value(files.path, exc):
        return f"{name} could not be loaded: {unknown}; correct the file"
    if "Unrecognized processing class" in text:
        return f"{name} has no tokenizer: copy tokenizer.json and tokenizer_config.json into {files.path}"
    return f"{name} could not be loaded: {type(exc).__name__}: {text[:400]}"


def _describe_missing_weights(files: ModelFiles) -> str:
    """Name files that programs other than torch compute, if there are no weights."""
    if not lacks_weights(files.path):
        return ""
    names = list_files(files)
    graphs = [name for name in names if is_graph(name)]
    if graphs:
        return f"{graphs[0]}; use --engine onnx or --engine openvino"
    ggufs = [name for name in names if name.endswith(".gguf")]
    if ggufs:
        return f"{ggufs[0]}, which llama.cpp computes; get a model with *.safetensors files"
    return ""


def _describe_broken_tokenizer(folder: Path) -> str:
    """Explain why the tokenizer of a Transformer cannot be loaded, as a phrase to follow the model's name."""
    modules = list_modules(folder)
    paths = [module.path for module in modules if module.class_name == "Transformer"]
    explanations = map(_explain_tokenizer, paths if modules else [folder])
    return next(filter(None, explanations), "")


def _explain_tokenizer(folder: Path) -> str:
    path, config = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if not path.is_file() and not any(list(folder.glob(name)) for name in _VOCABULARIES):
        return f"has no tokenizer: copy {path.name} and {config.name} into {folder}"
    if path.is_file() and (reason := _explain_file(path)):
        return (
            f"has a broken tokenizer: {path} is not a file of the tokenizers library ({reason});"
            " download it again"
        )
    try:
        AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except _LIBRARY_ERRORS as exc:
        if not path.is_file() or "should be selected" in str(exc):  # about the side of padding or truncation
            return f"has a tokenizer that cannot be loaded, by {config}: {one_line(exc, 200)}"
        class_name = read_object(config).get("tokenizer_class") or "the class that was chosen for it"
        return (
            f"has a tokenizer.json that {class_name} cannot read ({one_line(exc, 100)}); set"
            f' "tokenizer_class" to "PreTrainedTokenizerFast" in {config} to use the file as it is'
        )
    return ""


def _explain_file(path: Path) -> str:
    """Return why the library cannot read its own file, or ""."""
    try:
        open_tokenizer(path)
    except StartupError as problem:
        return str(problem)
    return ""


def _describe_missing_values(folder: Path, text: str) -> str:
    """Name the configuration of a module that lacks values that its class needs."""
    match = _MISSING_VALUES.search(text)
    module = match and next((each for each in list_modules(folder) if each.class_name == match[1]), None)
    if not match or not module:
        return ""
    return f"is incomplete: the configuration of {module.class_name} in {module.path} lacks {match[2]}"


def _describe_unknown_value(folder: Path, exc: Exception) -> str:
    """Name the field of a configuration with a value that a library does not know."""
    match = _LOOKED_UP.search(f"{type(exc).__name__}: {exc}")
    fields = (field for field in walk_fields(folder) if match and field.value == match[1])
    return next(
        (f"{field.path} has the unknown {'.'.join(field.keys)} {field.value!r}" for field in fields), ""
    )
