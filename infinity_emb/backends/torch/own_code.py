"""Refuse a model whose files name code or files elsewhere, unless its code is trusted.

transformers ignores `auto_map` if it has a network of the same `model_type`, and then computes other outputs
than the author's code does: BERT in place of JinaBERT. So an `auto_map` counts as code, except for a few
architectures that were published with their own code and that transformers has added since.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from infinity_emb.backends.torch.class_names import may_be_named
from infinity_emb.hub.config_files import ConfigField, walk_fields
from infinity_emb.hub.detect import lacks_weights, read_object
from infinity_emb.hub.folder_check import check_folder
from infinity_emb.hub.repository import find_local_folder

# By `model_type`: the names of the original code's classes. transformers reads the original's weight files.
_ADDED_SINCE = {
    "eurobert": ("EuroBert",),
    "gte": ("Gte",),
    "jina_embeddings_v3": ("JinaEmbeddingsV3", "XLMRobertaFlash", "XLMRobertaLoRA", "XLMRobertaModel"),
    "nomic_bert": ("NomicBert",),
}
_LOADER_OPTIONS = frozenset(
    {"model_args", "model_kwargs", "tokenizer_args", "processor_kwargs", "config_args", "config_kwargs"}
    | {"sp_model_kwargs"}
)
# Of `from_pretrained`: those that run code (`weights_only` unpickles) and those that name files elsewhere.
_REFUSED_OPTIONS = frozenset(
    {"adapter_kwargs", "allow_all_kernels", "kernel_config", "use_kernels", "weights_only"}
    | {"config", "gguf_file", "merges_file", "offload_folder", "proxies", "spm_file", "tokenizer_file"}
    | {"init_inputs", "merges", "model_file", "vocab", "vocab_file"}
)
# What transformers passes on to a tokenizer's class, and the arguments that the class opens as a file if they
# are strings.
_TOKENIZER_FILES = frozenset({"special_tokens_map.json", "tokenizer_config.json"})
_TOKENIZER_DATA = frozenset({"merges", "vocab"})
_IMPLEMENTATION_KEYS = ("attn_implementation", "experts_implementation")
_REFERENCES = frozenset({"base_model_name_or_path", "tokenizer_name_or_path"})


class OwnCodeError(ValueError):
    """A model's files name code that runs with `--trust-remote-code` only."""


def check_own_code(folder: Path) -> None:
    """Raise OwnCodeError if a folder, or one that it refers to, names code.

    Raises StartupError if it refers to a folder that must not be read.
    """
    waiting, seen = [folder], set()
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        computes_network = current != folder or not lacks_weights(current)
        for field in walk_fields(current):
            _check_field(field, computes_network=computes_network)
            waiting += _find_references(field)


def _check_field(field: ConfigField, *, computes_network: bool) -> None:
    """Raise OwnCodeError for a field that names code.

    computes_network: false where a graph of ONNX or OpenVINO is computed in place of the network.
    """
    if not may_be_named(field) or not _may_be_option(field):
        where = f"{field.path.relative_to(field.path.parents[1])}: {'.'.join(field.keys)}"
        raise OwnCodeError(f"{where} is {field.value!r}")
    if "auto_map" not in field.keys or not isinstance(field.value, str) or _is_added_since(field):
        return
    if computes_network or not field.key.startswith(("AutoConfig", "AutoModel")):
        raise OwnCodeError(
            f"auto_map in {field.path.name} names {field.value!r}; without it the outputs would differ"
        )


def _may_be_option(field: ConfigField) -> bool:
    """Return false for an option of the loader that a model's files must not set."""
    if field.key.endswith(_IMPLEMENTATION_KEYS):
        return "/" not in str(field.value)  # code from the hub
    if field.path.name in _TOKENIZER_FILES and isinstance(field.value, str):
        if field.key in _TOKENIZER_DATA:
            return field.is_in_list
        if field.key == "init_inputs":
            return False
    if field.key == "megatron_core":
        return field.value in (None, "megatron.core")  # peft imports it
    pairs = zip(field.keys, field.keys[1:], strict=False)
    return not any(outer in _LOADER_OPTIONS and inner in _REFUSED_OPTIONS for outer, inner in pairs)


def _is_added_since(field: ConfigField) -> bool:
    class_name = str(field.value).rpartition(".")[2].lower()
    model_type = read_object(field.path.parent / "config.json").get("model_type")
    return class_name.startswith(tuple(each.lower() for each in _ADDED_SINCE.get(str(model_type), ())))


def _find_references(field: ConfigField) -> Iterator[Path]:
    """Yield the folder that a field makes the libraries read, too: the base of an adapter, a tokenizer."""
    if field.key not in _REFERENCES or not isinstance(field.value, str):
        return
    path = find_local_folder(field.value)
    if path is not None:
        check_folder(path)
        yield path
