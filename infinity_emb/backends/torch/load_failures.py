"""Explain why sentence-transformers could not load a model."""

from __future__ import annotations

from infinity_emb.backends.torch.own_code import OwnCodeError
from infinity_emb.config.model_options import ModelOptions
from infinity_emb.errors import one_line
from infinity_emb.hub.contents_check import explain_unreadable_weights
from infinity_emb.hub.detect import lacks_weights, read_object
from infinity_emb.hub.file_selection import is_graph
from infinity_emb.hub.repository import list_files
from infinity_emb.hub.resolve import ModelFiles


def describe_failure(options: ModelOptions, files: ModelFiles, exc: Exception) -> str:
    """Return one line: the model, what is wrong with it, and the way out."""
    name, text = f"model {options.model_name_or_path!r}", one_line(exc)
    if isinstance(exc, OwnCodeError) or "trust_remote_code" in text:
        found = f": {text[:400]}" if isinstance(exc, OwnCodeError) else ""
        return (
            f"{name} brings Python code of its own; --trust-remote-code runs it with your rights, so read it"
            f" first{found}"
        )
    if (files.path / "adapter_config.json").is_file():
        base = read_object(files.path / "adapter_config.json").get("base_model_name_or_path")
        name += f", an adapter of {base!r}, which must be on this machine,"
    if broken := explain_unreadable_weights(files.path):
        return broken
    if missing := _describe_missing_weights(files):
        return f"{name} has no torch weights, but {missing}"
    if "Unrecognized processing class" in text:
        return f"{name} has no tokenizer: copy tokenizer.json and tokenizer_config.json into {files.path}"
    return f"{name} could not be loaded: {type(exc).__name__}: {text[:400]}"


def _describe_missing_weights(files: ModelFiles) -> str:
    """Name files that other programs than torch compute, if there are no weights."""
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
