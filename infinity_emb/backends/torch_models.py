"""Which class of sentence-transformers loads which kind of model, and what the loaded model says of itself.

Knows nothing of layouts, devices' queues or replicas.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules import Router, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers.utils import logging as transformers_logging

from infinity_emb.backends.base import Rows, leave_scores
from infinity_emb.backends.m3_heads import M3Heads, has_m3_heads
from infinity_emb.config import EngineArgs
from infinity_emb.errors import StartupError, one_line
from infinity_emb.model_files import ModelFiles, is_graph
from infinity_emb.model_kind import lacks_weights
from infinity_emb.primitives import Capability, ModelKind, OutputName, PoolingMethod
from infinity_emb.repository_files import list_files

_CLASS_OF: dict[ModelKind, type[BaseModel]] = {
    ModelKind.embedder: SentenceTransformer,
    ModelKind.reranker: CrossEncoder,
    ModelKind.classifier: CrossEncoder,
    ModelKind.sparse: SparseEncoder,
    ModelKind.multivector: MultiVectorEncoder,
}
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


def load_sentence_transformers_model(
    args: EngineArgs, files: ModelFiles, kind: ModelKind, device: torch.device, dtype: torch.dtype
) -> BaseModel:
    """By the model's own files alone; nothing is downloaded. Raises StartupError."""
    try:
        with _without_progress_bars():
            model = _CLASS_OF[kind](
                str(files.path),
                device=str(device),
                trust_remote_code=args.trust_remote_code,
                model_kwargs={"dtype": dtype},
                local_files_only=True,
            )
        if kind is ModelKind.embedder and has_m3_heads(files.path):
            _append_m3_heads(model, files)
    except Exception as exc:  # whatever a model's files can make the libraries raise
        raise StartupError(_loading_failure(args, files, exc)) from exc
    model.eval()
    # Parameters only: the frequencies of rotary positions are buffers and must stay float32.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    _apply_pooling(model, args.pooling_method)
    return model


@contextlib.contextmanager
def _without_progress_bars() -> Iterator[None]:
    """transformers draws one even for weights that are read in no time."""
    if not transformers_logging.is_progress_bar_enabled():
        yield
        return
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # it has no hint
    try:
        yield
    finally:
        transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _append_m3_heads(model: BaseModel, files: ModelFiles) -> None:
    tokenizer = model.tokenizer
    names = ("cls_token_id", "eos_token_id", "pad_token_id", "unk_token_id")
    ids = [getattr(tokenizer, name, None) for name in names]
    heads = M3Heads.load(files.path, [each for each in ids if each is not None])
    model.append(heads.to(model.device))


def _loading_failure(args: EngineArgs, files: ModelFiles, exc: Exception) -> str:
    text = one_line(exc)
    if "trust_remote_code" in text:
        return (
            f"model {args.model_name_or_path!r} brings Python code of its own; --trust-remote-code runs it"
            " with your rights, so read it first"
        )
    graphs = [name for name in list_files(files) if is_graph(name)]
    if graphs and lacks_weights(files.path):
        return (
            f"model {args.model_name_or_path!r} has no torch weights, but {graphs[0]};"
            " use --engine onnx or --engine openvino"
        )
    return f"model {args.model_name_or_path!r} could not be loaded: {type(exc).__name__}: {text[:400]}"


def _apply_pooling(model: BaseModel, method: PoolingMethod) -> None:
    if method is PoolingMethod.auto:
        return
    pooling = next((module for module in model.modules() if isinstance(module, Pooling)), None)
    if pooling is None:
        raise StartupError(f"--pooling-method {method} cannot be used: the model has no Pooling module")
    pooling.pooling_mode = method.value


def input_module(model: BaseModel, task: str | None) -> Any:
    """The module that a text of this task enters: the first, or a router's first for it."""
    first: Any = model[0]
    if isinstance(first, Router):
        route: Any = first._resolve_route(task=task, modality="text")
        modules: Any = first.sub_modules[route]
        return modules[0]
    return first


def transformers_of(model: BaseModel) -> list[Transformer]:
    """Every transformer in the model, the first one first."""
    return [module for module in model.modules() if isinstance(module, Transformer)]


def reads_task(model: BaseModel) -> bool:
    """Whether what is computed depends on the task, not only the prompt and the length."""
    return any(
        isinstance(module, Router)
        or "task" in getattr(module, "forward_kwargs", ())
        or "task" in getattr(module, "_declared_forward_params", ())
        for module in model.modules()
    ) or any("task" in names for names in (model.module_kwargs or {}).values())


def tokenizes_by_task(model: BaseModel) -> bool:
    """Whether a task has a length or a chat template of its own."""
    return any(
        transformer.query_length
        or transformer.document_length
        or transformer.query_expansion
        or ("message" in transformer.modality_config and transformer._chat_template_declares_task())
        for transformer in transformers_of(model)
    )


def tasks_of(model: BaseModel) -> tuple[str, ...]:
    """Names that choose a part of the model: a router's routes, an architecture's adapters."""
    names: list[str] = []
    for module in model.modules():
        if isinstance(module, Router):
            names += module.sub_modules.keys()
    for transformer in transformers_of(model):
        names += getattr(transformer.model.config, "lora_adaptations", None) or ()
    return tuple(dict.fromkeys(names))


def capabilities_of(model: BaseModel, kind: ModelKind) -> tuple[Capability, ...]:
    """What the model can do, first what it is made for."""
    capabilities = list(_TEXT_CAPABILITIES[kind]) if _takes(model, "text") else []
    if kind is ModelKind.embedder and len(outputs_of(model, kind)) > 1:
        capabilities.append("embed_sparse")
    if kind in (ModelKind.embedder, ModelKind.multivector):
        capabilities += ["image_embed"] if _takes(model, "image") else []
        capabilities += ["audio_embed"] if _takes(model, "audio") else []
    return tuple(capabilities)


def _takes(model: BaseModel, modality: str) -> bool:
    return modality in model.modalities


def outputs_of(model: BaseModel, kind: ModelKind) -> tuple[OutputName, ...]:
    """What an embedder can answer for one text."""
    if any(isinstance(module, M3Heads) for module in model):
        return ("dense", "sparse", "multivector")
    return _OUTPUTS.get(kind, ())


def labels_of(model: BaseModel, kind: ModelKind) -> tuple[str, ...]:
    """A classifier's labels, in the order of its scores."""
    if kind is not ModelKind.classifier:
        return ()
    config: Any = model.config
    return tuple(str(config.id2label[number]) for number in range(config.num_labels))


def activation_of(model: BaseModel, kind: ModelKind) -> tuple[str, Callable[[Rows], Rows]]:
    """What makes scores of raw ones, by name and as a function of (N, L) float32."""
    if kind is ModelKind.classifier:
        name = _classifier_activation(model)
        functions = {"softmax": torch.nn.Softmax(dim=-1), "sigmoid": torch.nn.Sigmoid()}
        return name, _on_rows(functions[name]) if name in functions else leave_scores
    if isinstance(model, CrossEncoder):
        function = model.activation_fn
        return type(function).__name__.lower(), _on_rows(function)
    return "none", leave_scores


def _classifier_activation(model: BaseModel) -> str:
    """As transformers' text classification pipeline decides."""
    config: Any = model.config
    if config.problem_type == "regression":
        return "none"
    is_multi_label = config.problem_type == "multi_label_classification"
    return "sigmoid" if is_multi_label or config.num_labels == 1 else "softmax"


def _on_rows(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Rows], Rows]:
    def activate(rows: Rows) -> Rows:
        activated: Rows = function(torch.from_numpy(rows)).numpy()
        return np.ascontiguousarray(activated, dtype=np.float32)

    return activate


def pooling_of(model: BaseModel) -> str:
    """The pooling modes, as `/models` shows them."""
    modes = [module.pooling_mode for module in model.modules() if isinstance(module, Pooling)]
    return ", ".join(mode if isinstance(mode, str) else " + ".join(mode) for mode in modes) or "none"


def max_tokens_of(model: BaseModel) -> int | None:
    """The limit that sentence-transformers cuts at; None where transformers' placeholder stands for none."""
    limit = model.max_seq_length
    return None if limit is None or limit > 10**9 else int(limit)


def limit_of(transformer: Transformer, task: str | None, max_tokens: int | None) -> int | None:
    """Queries and documents of late-interaction models may have limits of their own."""
    expansion = transformer.query_expansion if task == "query" else None
    own = {"query": transformer.query_length, "document": transformer.document_length}.get(task or "")
    if expansion is None:
        return own or max_tokens
    if expansion["strategy"] == "fixed":
        return int(expansion["length"])
    return max(own, expansion["length"]) if own else max_tokens


def leaves_prompts_out(model: BaseModel) -> bool:
    """Whether pooling does not count the tokens of a prompt."""
    return any(isinstance(module, Pooling) and not module.include_prompt for module in model.modules())


def num_prompt_tokens(transformer: Transformer, prompt: str) -> int:
    """How many leading tokens are the prompt's, as sentence-transformers counts them: without an end token.

    Its own way of counting would take a prompt that is a URL or a path for an image, and open it.
    """
    if "message" in transformer.modality_config:
        return 0  # sentence-transformers does not count in a chat template
    ids = transformer.preprocess([{"text": prompt}]).get("input_ids")
    if ids is None or not ids.shape[-1]:
        return 0
    ends_specially = ids[0, -1].item() in getattr(transformer.tokenizer, "all_special_ids", ())
    return int(ids.shape[-1]) - ends_specially


@dataclass(frozen=True, slots=True)
class Expansion:
    """ColBERT's query expansion: short queries are filled up with a token that has rows of its own."""

    length: int
    token_id: int
    is_attended: bool  # whether the other tokens look at it

    @classmethod
    def of(cls, transformer: Transformer) -> Expansion | None:
        """As sentence-transformers resolves it: the named token, else [MASK], else the end token."""
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


def sampling_rate_of(model: BaseModel) -> int | None:
    """Of the clips that the model takes, in Hz."""
    for transformer in transformers_of(model):
        processor = getattr(transformer, "processor", None)
        extractor = getattr(processor, "feature_extractor", processor)
        rate = getattr(extractor, "sampling_rate", None)
        if rate:
            return int(rate)
    return None
