"""Decide which classes a model's files may name without `--trust-remote-code`.

There is an allow-list: modules of torch.nn and of sentence-transformers, and the networks, tokenizers and
processors of transformers. The libraries import whatever is named and call it; sentence-transformers checks
an activation only for the prefix `torch.`, which `torch._C._abort` has, too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import sentence_transformers
import torch
import transformers
from sentence_transformers.sentence_transformer.modules.tokenizer import WordTokenizer
from sentence_transformers.util import import_from_string
from transformers.image_processing_base import ImageProcessingMixin

from infinity_emb.hub.config_files import ConfigField

# Of a CrossEncoder, in config.json and config_sentence_transformers.json, and of a Dense module.
_ACTIVATION_KEYS = frozenset({"activation_fn", "sbert_ce_default_activation_function", "activation_function"})
_LIBRARY = "sentence_transformers."
_LIBRARY_CLASSES = (torch.nn.Module, WordTokenizer)
# Classes that sentence-transformers replaces by its own, and so never imports.
_RENAMED_MODULES = frozenset({"pylate.models.Dense.Dense"})
_PROCESSORS = (
    transformers.PreTrainedTokenizerBase,
    transformers.ProcessorMixin,
    transformers.FeatureExtractionMixin,
    ImageProcessingMixin,
)
_PROCESSOR_KEYS = (
    "tokenizer_class",
    "processor_class",
    "processor_type",
    "extractor_type",
    "extractor_class",
)


class CrossEncoder(sentence_transformers.CrossEncoder):
    """Check an activation's name where it is resolved: it may come from another folder, as an adapter's base
    does.

    The class keeps its name, which sentence-transformers compares with the one in a model's files.
    """

    def _resolve_activation_fn(self, activation_fn_path: str) -> Callable[..., object] | None:
        if not self.trust_remote_code and not _may_be_activation(activation_fn_path):
            raise ValueError(f"activation {activation_fn_path!r} needs trust_remote_code")
        return super()._resolve_activation_fn(activation_fn_path)


def may_be_named(field: ConfigField) -> bool:
    """Return whether a field names no class at all, or one that may be imported and called."""
    key, value = field.key, field.value
    if key in _ACTIVATION_KEYS and value is not None:
        return _may_be_activation(value)
    if not isinstance(value, str):
        return True
    if _names_module(field):
        return value in _RENAMED_MODULES or is_library_class(value)
    if value.startswith(_LIBRARY):
        return is_library_class(value)
    if key.endswith(_PROCESSOR_KEYS):
        return _is_known(value, _PROCESSORS)
    return key != "architectures" or _is_known(value, (transformers.PreTrainedModel,))


def is_activation(name: object) -> bool:
    """Return whether a name is that of a module class of torch.nn."""
    module_name, _, class_name = str(name).rpartition(".")
    if module_name != "torch.nn" and not module_name.startswith("torch.nn.modules"):
        return False
    # All of torch.nn is imported already.
    found = getattr(sys.modules.get(module_name), class_name, None)
    return (
        isinstance(found, type)
        and issubclass(found, torch.nn.Module)
        and found.__module__.startswith("torch.nn.modules.")
    )


def is_library_class(name: str) -> bool:
    """Return whether a name is that of a module or tokenizer of sentence-transformers, or does not exist."""
    if not name.startswith(_LIBRARY):
        return False
    try:
        found: object = import_from_string(name)
    except ImportError:
        return True  # loading fails and says so
    return (
        isinstance(found, type)
        and issubclass(found, _LIBRARY_CLASSES)
        and found.__module__.startswith(_LIBRARY)
    )


def _names_module(field: ConfigField) -> bool:
    """Return whether a field is the class of a pipeline's module, or of one inside a Router."""
    if field.path.name == "modules.json":
        return field.keys == ("type",)
    return len(field.keys) > 1 and field.keys[-2] == "types" and "." in str(field.value)


def _may_be_activation(name: object) -> bool:
    """Return true for modules of torch.nn, and for names without a dot, such as transformers' `gelu_new`."""
    return "." not in str(name) or is_activation(name)


def _is_known(name: str, bases: tuple[type, ...]) -> bool:
    """Return whether a name is that of a class of this kind in transformers, or does not exist there."""
    if "." in name:
        return False
    try:
        found = getattr(transformers, name, None)
    except (ImportError, RuntimeError):  # loading fails, too, and says why
        return True
    # A class whose package is missing is replaced by a placeholder that raises when it is used.
    is_placeholder = hasattr(found, "_backends")
    return found is None or is_placeholder or (isinstance(found, type) and issubclass(found, bases))
