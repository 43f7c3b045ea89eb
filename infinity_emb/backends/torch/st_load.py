"""Load a model with the class of sentence-transformers that fits its kind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from sentence_transformers import MultiVectorEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.base.model import BaseModel
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers.utils import logging as transformers_logging

from infinity_emb.backends.torch.bge_m3 import M3Heads, has_m3_heads
from infinity_emb.backends.torch.class_names import CrossEncoder
from infinity_emb.backends.torch.load_failures import describe_failure
from infinity_emb.backends.torch.loaded_weights import check_weights, record_loading
from infinity_emb.backends.torch.own_code import check_own_code
from infinity_emb.backends.torch.padding_token import add_padding_tokens
from infinity_emb.backends.torch.text_limits import limit_to_positions
from infinity_emb.backends.torch.tokenizer_check import check_tokenizers
from infinity_emb.config.model_options import ModelOptions
from infinity_emb.errors import StartupError
from infinity_emb.hub.detect import read_object
from infinity_emb.hub.modules import list_modules
from infinity_emb.hub.resolve import ModelFiles
from infinity_emb.storage.load_progress import report_stage
from infinity_emb.types import ModelKind, PoolingMethod

_CLASSES: dict[ModelKind, type[BaseModel]] = {
    ModelKind.embedder: SentenceTransformer,
    ModelKind.reranker: CrossEncoder,
    ModelKind.classifier: CrossEncoder,
    ModelKind.sparse: SparseEncoder,
    ModelKind.multivector: MultiVectorEncoder,
}
# Modules with weights that sentence-transformers adds to a model of another kind.
_TRAINED_MODULES = ("Dense", "SparseAutoEncoder")


def load_sentence_transformers_model(
    options: ModelOptions, files: ModelFiles, kind: ModelKind, device: torch.device, dtype: torch.dtype
) -> BaseModel:
    """Load from the model's files without downloading anything. Raise StartupError."""
    try:
        if not options.trust_remote_code:
            check_own_code(files.path)
        with _hide_progress_bars(), record_loading() as loadings:
            model = _CLASSES[kind](
                str(files.path),
                device=str(device),
                trust_remote_code=options.trust_remote_code,
                model_kwargs={"dtype": dtype},
                local_files_only=True,
            )
        if kind is ModelKind.embedder and has_m3_heads(files.path):
            _append_m3_heads(model, files)
    except StartupError:
        raise
    except Exception as exc:  # a model's files can make the libraries raise anything
        raise StartupError(describe_failure(options, files, exc)) from exc
    report_stage("checking outputs")
    try:
        _adapt(model, options, dtype)
        if not options.allow_missing_weights:
            _check_modules(model, files.path)
        check_weights(model, loadings, allow_missing=options.allow_missing_weights)
        check_tokenizers(model, files.path)
    except StartupError as exc:
        raise StartupError(f"model {options.model_name_or_path!r} cannot be served: {exc}") from exc
    return model


def _check_modules(model: BaseModel, folder: Path) -> None:
    """Raise StartupError for a module that sentence-transformers has added, with random weights.

    It adds modules to a model of another kind, so that they can be trained.
    """
    saved = {module.class_name for module in list_modules(folder)}
    architectures = read_object(folder / "config.json").get("architectures") or []
    if "HF_ColBERT" in architectures:  # its projection lies beside the network's weights
        saved.add("Dense")
    added = [type(module).__name__ for module in model if type(module).__name__ in _TRAINED_MODULES]
    if unsaved := next((name for name in added if name not in saved), ""):
        raise StartupError(
            f"its files have no {unsaved} module, whose weights would be random; choose the --model-kind that"
            " the model was trained as, or serve it anyway with --allow-missing-weights"
        )


def _adapt(model: BaseModel, options: ModelOptions, dtype: torch.dtype) -> None:
    """Convert the weights and apply options and limits."""
    model.eval()
    # Parameters only: the frequencies of rotary positions are buffers and must stay float32.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    _apply_pooling(model, options.pooling_method)
    _move_skiplists(model)
    add_padding_tokens(model)
    limit_to_positions(model)


def _move_skiplists(model: BaseModel) -> None:
    """Move the ids of tokens without a vector to the device; otherwise each batch copies them."""
    for module in model.modules():
        if isinstance(module, MultiVectorMask) and module._skiplist_ids is not None:
            module._skiplist_ids = module._skiplist_ids.to(model.device)


@contextlib.contextmanager
def _hide_progress_bars() -> Iterator[None]:
    """Disable the bar that transformers draws even for small weights."""
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
    heads = M3Heads.load(files.path, [token_id for token_id in ids if token_id is not None])
    model.append(heads.to(model.device))


def _apply_pooling(model: BaseModel, method: PoolingMethod) -> None:
    if method is PoolingMethod.auto:
        return
    pooling = next((module for module in model.modules() if isinstance(module, Pooling)), None)
    if pooling is None:
        raise StartupError(f"--pooling-method {method} cannot be used: the model has no Pooling module")
    pooling.pooling_mode = method.value
