"""Inspect a loaded sentence-transformers model: its capabilities, limits and input modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules import Router, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from infinity_emb.backends.base import identity_activation
from infinity_emb.backends.torch.bge_m3 import M3Heads
from infinity_emb.items import Float32Array
from infinity_emb.types import Capability, ModelKind, OutputName

_TEXT_CAPABILITIES: dict[ModelKind, tuple[Capability, ...]] = {
    ModelKind.embedder: ("embed", "rerank"),
    ModelKind.reranker: ("rerank",),
    ModelKind.classifier: ("classify",),
    ModelKind.sparse: ("embed_sparse", "embed", "rerank"),
    ModelKind.multivector: ("embed", "rerank"),
}
_OUTPUTS: dict[ModelKind, tuple[OutputName, ...]] = {
    ModelKind.embedder: ("dense",),
    ModelKind.sparse: ("sparse",),
    ModelKind.multivector: ("multivector",),
}


def get_input_module(model: BaseModel, task: str | None) -> Any:
    """Return the first module for a text of this task. Raise ValueError if a router has no route for it."""
    first: Any = model[0]
    if isinstance(first, Router):
        route: Any = first._resolve_route(task=task, modality="text")
        modules: Any = first.sub_modules[route]
        return modules[0]
    return first


def find_transformers(model: BaseModel) -> list[Transformer]:
    """Return all transformers of the model, in order."""
    return [module for module in model.modules() if isinstance(module, Transformer)]


def is_of_transformers(module: object) -> bool:
    """Return whether a module's class is one of transformers, not of a repository's own code."""
    return type(module).__module__.startswith("transformers.")


def depends_on_task(model: BaseModel) -> bool:
    """Return whether outputs depend on the task, beyond the prompt and the length."""
    return any(
        isinstance(module, Router)
        or "task" in getattr(module, "forward_kwargs", ())
        or "task" in getattr(module, "_declared_forward_params", ())
        for module in model.modules()
    ) or any("task" in names for names in (model.module_kwargs or {}).values())


def tokenizes_by_task(model: BaseModel) -> bool:
    """Return whether a task has its own length or chat template."""
    return any(
        transformer.query_length
        or transformer.document_length
        or transformer.query_expansion
        or ("message" in transformer.modality_config and transformer._chat_template_declares_task())
        for transformer in find_transformers(model)
    )


def get_tasks(model: BaseModel) -> tuple[str, ...]:
    """Return the names that select a part of the model: a router's routes, an architecture's adapters."""
    names: list[str] = []
    for module in model.modules():
        if isinstance(module, Router):
            names += module.sub_modules.keys()
    for transformer in find_transformers(model):
        names += getattr(transformer.model.config, "lora_adaptations", None) or ()
    return tuple(dict.fromkeys(names))


def get_capabilities(model: BaseModel, kind: ModelKind) -> tuple[Capability, ...]:
    """Return what the model can do, its main purpose first."""
    capabilities = list(_TEXT_CAPABILITIES[kind]) if "text" in model.modalities else []
    if kind is ModelKind.embedder and len(get_outputs(model, kind)) > 1:
        capabilities.append("embed_sparse")
    if kind in (ModelKind.embedder, ModelKind.multivector):
        capabilities += ["image_embed"] if "image" in model.modalities else []
        capabilities += ["audio_embed"] if "audio" in model.modalities else []
    return tuple(capabilities)


def get_outputs(model: BaseModel, kind: ModelKind) -> tuple[OutputName, ...]:
    """Return the outputs that an embedder has for one text, the default first."""
    if any(isinstance(module, M3Heads) for module in model):
        return ("dense", "sparse", "multivector")
    return _OUTPUTS.get(kind, ())


def get_labels(model: BaseModel, kind: ModelKind) -> tuple[str, ...]:
    """Return a classifier's labels, in the order of its scores."""
    if kind is not ModelKind.classifier:
        return ()
    config: Any = model.config
    return tuple(str(config.id2label[index]) for index in range(config.num_labels))


def get_activation(model: BaseModel, kind: ModelKind) -> tuple[str, Callable[[Float32Array], Float32Array]]:
    """Return the activation that turns (N, L) float32 raw scores into scores, and its name."""
    if kind is ModelKind.classifier:
        name = _classifier_activation(model)
        functions = {"softmax": torch.nn.Softmax(dim=-1), "sigmoid": torch.nn.Sigmoid()}
        return name, _wrap_activation(functions[name]) if name in functions else identity_activation
    if isinstance(model, CrossEncoder):
        function = model.activation_fn
        return type(function).__name__.lower(), _wrap_activation(function)
    return "none", identity_activation


def _classifier_activation(model: BaseModel) -> str:
    """Choose as the text classification pipeline of transformers does."""
    config: Any = model.config
    if config.problem_type == "regression":
        return "none"
    is_multi_label = config.problem_type == "multi_label_classification"
    return "sigmoid" if is_multi_label or config.num_labels == 1 else "softmax"


def _wrap_activation(
    function: Callable[[torch.Tensor], torch.Tensor],
) -> Callable[[Float32Array], Float32Array]:
    def activate(scores: Float32Array) -> Float32Array:
        activated: Float32Array = function(torch.from_numpy(scores)).numpy()
        return np.ascontiguousarray(activated, dtype=np.float32)

    return activate


def describe_pooling(model: BaseModel) -> str:
    """Return the pooling modes for `/models`."""
    modes = [module.pooling_mode for module in model.modules() if isinstance(module, Pooling)]
    return ", ".join(mode if isinstance(mode, str) else " + ".join(mode) for mode in modes) or "none"


def get_max_tokens(model: BaseModel) -> int | None:
    """Return the number of tokens that texts of every route may have; None for no limit."""
    first: Any = model[0]
    modules: list[Any] = [first]
    if isinstance(first, Router):
        routes: Any = first.sub_modules.values()
        modules = [route[0] for route in routes]
    limits = [limit for module in modules if (limit := get_text_limit(module)) is not None]
    return min(limits, default=None)


def get_text_limit(module: object) -> int | None:
    """Return the limit at which an input module truncates; None for the placeholder of no limit."""
    limit: float | None = getattr(module, "max_seq_length", None)
    return None if limit is None or limit > 10**9 else int(limit)


def get_task_limit(transformer: Transformer, task: str | None, max_tokens: int | None) -> int | None:
    """Return the limit for a task; queries and documents of late-interaction models may have their own."""
    expansion = transformer.query_expansion if task == "query" else None
    own = {"query": transformer.query_length, "document": transformer.document_length}.get(task or "")
    if expansion is None:
        return own or max_tokens
    if expansion["strategy"] == "fixed":
        return int(expansion["length"])
    return max(own, expansion["length"]) if own else max_tokens


def excludes_prompt(model: BaseModel) -> bool:
    """Return whether pooling excludes the tokens of a prompt."""
    return any(isinstance(module, Pooling) and not module.include_prompt for module in model.modules())


def count_prompt_tokens(transformer: Transformer, prompt: str) -> int:
    """Count the leading tokens of a prompt as sentence-transformers does: without an end token.

    Its own function would take a prompt that is a URL or a path to be an image, and open it.
    """
    if "message" in transformer.modality_config:
        return 0  # sentence-transformers does not count prompts in a chat template
    ids = transformer.preprocess([{"text": prompt}]).get("input_ids")
    if ids is None or not ids.shape[-1]:
        return 0
    ends_specially = ids[0, -1].item() in getattr(transformer.tokenizer, "all_special_ids", ())
    return int(ids.shape[-1]) - ends_specially


@dataclass(frozen=True, slots=True)
class Expansion:
    """ColBERT's query expansion: short queries are filled up with a token that gets vectors, too."""

    length: int
    token_id: int
    attend_to_expansion: bool  # whether the other tokens attend to it

    @classmethod
    def resolve(cls, transformer: Transformer) -> Expansion | None:
        """Choose the token as sentence-transformers does: the named one, else [MASK], else the end token."""
        expansion, tokenizer = transformer.query_expansion, transformer.tokenizer
        if expansion is None or tokenizer is None:
            return None
        if expansion["token"] is not None:
            token_id = tokenizer.convert_tokens_to_ids(expansion["token"])
        else:
            mask_id = tokenizer.mask_token_id
            token_id = mask_id if mask_id is not None else tokenizer.eos_token_id
        assert isinstance(token_id, int), "sentence-transformers has checked the token"
        return cls(int(expansion["length"]), token_id, bool(expansion["attend"]))


def get_sampling_rate(model: BaseModel) -> int | None:
    """Return the sampling rate of the model's audio inputs, in Hz."""
    for transformer in find_transformers(model):
        processor = getattr(transformer, "processor", None)
        extractor = getattr(processor, "feature_extractor", processor)
        rate = getattr(extractor, "sampling_rate", None)
        if rate:
            return int(rate)
    return None
