"""Quantize a loaded model to int8 or fp8, if that is faster and its outputs stay close.

Only the `Linear` layers in the network's blocks change; heads, pooling and projections do not. On a CPU they
are replaced by those of `linear.py`; on CUDA torchao quantizes them, also per channel and token. Speed and
outputs before and after are compared at each start, on this machine and with this model.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.base.model import BaseModel
from torch import nn

from infinity_emb.backends.accuracy import Accuracy, compare, find_bound
from infinity_emb.backends.base import identity_activation
from infinity_emb.backends.closeness import Change, Scores, make_scores, measure_change
from infinity_emb.backends.probes import measure_rates, mixed_texts
from infinity_emb.backends.sample_texts import load_sample_texts
from infinity_emb.backends.torch.cpu_threads import one_core
from infinity_emb.backends.torch.device import Choice, is_cpu
from infinity_emb.backends.torch.int8.linear import Int8Linear, LastRows, RowCoder, measure_rounding_error
from infinity_emb.backends.torch.int8.smoothquant import list_inner_linears, record_inputs
from infinity_emb.backends.torch.onednn_products import fastest_products
from infinity_emb.backends.torch.reference import Reference
from infinity_emb.backends.torch.st_introspection import find_transformers, get_activation
from infinity_emb.errors import StartupError, one_line
from infinity_emb.items import Float32Array
from infinity_emb.types import Dtype, ModelKind

logger = logging.getLogger("infinity_emb")

# Sample texts to choose the smoothing with, and others to compare outputs.
_CALIBRATION = slice(0, None, 4)
_COMPARISON = slice(2, None, 12)

_NUM_TIMED = 4
# Least rank correlation of a dtype that the user names, for which scores may move more than `find_objection`
# allows: int8 of all-MiniLM-L6-v2 has 0.999, weights of two values 0.6.
_MIN_MEAN_RANK = 0.97

Undo = Callable[[], None]


def quantize(model: BaseModel, kind: ModelKind, dtype: Dtype, full: Choice) -> Choice:
    """Quantize the model in place, or leave it unchanged if that is slower.

    full: the model's dtype so far. Returns the dtype that it has now, and why.
    Raises StartupError for a model that cannot be quantized, or whose outputs change too much.
    """
    layers = list_inner_linears(transformer.model for transformer in find_transformers(model))
    if not layers:
        raise StartupError(_refusal(dtype, full, "the model has no Linear layers in blocks"))
    try:
        trial = _try(model, kind, dtype, layers)
    except StartupError:
        raise
    except Exception as exc:  # a model's code may raise anything
        raise StartupError(
            _refusal(dtype, full, f"the model was tried and failed ({type(exc).__name__}: {exc})")
        ) from exc
    found = f"{_describe(trial.accuracy, kind)}, {trial.change}"
    if not is_usable(trial.accuracy, trial.change):
        raise StartupError(_refusal(dtype, full, f"its outputs differ too much ({found})"))
    if trial.gain <= 1:
        trial.undo()
        reason = f"{dtype} was requested, but measured {1 / trial.gain:.1f}x slower than {full.value} here"
        logger.warning("using %s: %s", full.value, reason)
        return Choice(full.value, reason)
    for transformer in find_transformers(model):
        network: Any = transformer.model
        network.number_format = torch.int8  # read by `get_tolerance`; fp8 rounds as coarsely
    reason = f"measured {trial.gain:.1f}x as fast as {full.value} here, {found}"
    return Choice(dtype.value, reason)


class _Trial(NamedTuple):
    """Result of quantizing. gain: speed relative to the dtype before. undo: restore it."""

    gain: float
    accuracy: Accuracy
    change: Change
    undo: Undo


def is_usable(accuracy: Accuracy, change: Change) -> bool:
    """Return whether a dtype that the user has named may be served: vectors and ranks must be similar."""
    return find_bound("quantization", "").holds(accuracy) and change.mean_rank >= _MIN_MEAN_RANK


def _try(model: BaseModel, kind: ModelKind, dtype: Dtype, layers: Sequence[nn.Linear]) -> _Trial:
    with one_core():
        before, full_s = compute_answers(model, kind), measure_answer_s(model)
        undo = _to_int8(model, kind, layers) if is_cpu(model.device) else quantize_with_torchao(layers, dtype)
        quantized_s = measure_answer_s(model)
        after = compute_answers(model, kind)
    change = measure_change(*(score_answers(model, kind, each) for each in (after, before)))
    return _Trial(full_s / quantized_s, compare_answers(before, after, kind), change, undo)


def _refusal(dtype: Dtype, full: Choice, reason: str) -> str:
    return f"--dtype {dtype} cannot be used: {reason}; use --dtype {full.value}"


def measure_answer_s(model: BaseModel) -> float:
    """Return the best time for a small batch of texts, or pairs, through sentence-transformers itself.

    On a CPU it is the CPU time of one core, which other processes affect little.
    """
    texts = mixed_texts()
    # `predict` takes a list of texts for one pair, so that classifiers are timed with pairs, too.
    is_scorer = isinstance(model, CrossEncoder)
    inputs = [(texts[0], text) for text in texts] if is_scorer else texts
    compute: Any = model.predict if is_scorer else model.encode
    clock = time.thread_time if is_cpu(model.device) else time.perf_counter

    def measure() -> float:
        started_s = clock()
        compute(inputs, show_progress_bar=False)
        return 1 / (clock() - started_s)

    with one_core(), fastest_products(model):
        (rate,) = measure_rates({"model": measure}, max_rounds=_NUM_TIMED).values()
    return 1 / rate


def compute_answers(model: BaseModel, kind: ModelKind, which: slice = _COMPARISON) -> list[Float32Array]:
    """Compute the sample texts: a vector or several for each, or scores."""
    reference, texts = Reference(model), load_sample_texts()[which]
    if kind is ModelKind.reranker:
        return [reference.score(texts[0], texts[1:])]
    if kind is ModelKind.classifier:
        return [reference.classify(text) for text in texts]
    return [reference.embed(text) for text in texts]


def score_answers(model: BaseModel, kind: ModelKind, answers: Sequence[Float32Array]) -> Scores:
    """Return the scores by which clients would decide."""
    if kind is ModelKind.reranker:  # activated by sentence-transformers
        return make_scores([np.atleast_1d(score) for score in answers[0]], kind, identity_activation)
    return make_scores(answers, kind, get_activation(model, kind)[1])


def compare_answers(
    before: Sequence[Float32Array], after: Sequence[Float32Array], kind: ModelKind
) -> Accuracy:
    """Compare the outputs of two dtypes: the cosines of vectors, the correlation of scores."""
    if kind not in (ModelKind.reranker, ModelKind.classifier):
        return compare(after, before)
    scores, others = (np.concatenate([array.ravel() for array in each]) for each in (after, before))
    return compare([scores - scores.mean()], [others - others.mean()])


def _describe(accuracy: Accuracy, kind: ModelKind) -> str:
    if kind in (ModelKind.reranker, ModelKind.classifier):
        return f"scores correlate {accuracy.mean_cosine:.4f}"
    return f"mean cosine {accuracy.mean_cosine:.4f}, lowest {accuracy.min_cosine:.4f}"


def _to_int8(model: BaseModel, kind: ModelKind, layers: Sequence[nn.Linear]) -> Undo:
    """Replace each layer that the sample texts reach by an `Int8Linear`."""
    with record_inputs(layers) as seen:
        compute_answers(model, kind, _CALIBRATION)
    last = LastRows()
    table: dict[nn.Module, nn.Module] = {}
    with torch.inference_mode():
        for shared in seen:
            coder = RowCoder(shared.best_smoothing(measure_rounding_error), last)
            for layer in shared.layers:
                table[layer] = Int8Linear(layer.weight, layer.bias, coder)
    _swap(model, table)
    return lambda: _swap(model, {after: before for before, after in table.items()})


def _swap(model: nn.Module, table: dict[nn.Module, nn.Module]) -> None:
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in table:
                setattr(parent, name, table[child])


def quantize_with_torchao(layers: Sequence[nn.Linear], dtype: Dtype) -> Undo:
    """Quantize with torchao. Raise StartupError if it is not installed or does not support this GPU."""
    try:
        from torchao import quantization as ao
    except ImportError as exc:
        raise StartupError(
            f"--dtype {dtype} on CUDA needs the package torchao; install infinity-emb[quantization]"
        ) from exc
    weights = {layer: layer.weight for layer in layers}
    try:
        make_config = (
            ao.Int8DynamicActivationInt8WeightConfig
            if dtype is Dtype.int8
            else ao.Float8DynamicActivationFloat8WeightConfig
        )
        # By default torchao changes global settings of torch, which affect other models.
        config: Any = make_config(granularity=ao.PerRow(), set_inductor_config=False)
        for layer in layers:
            ao.quantize_(layer, config)
    except Exception as exc:  # its type depends on the version and the GPU
        text = one_line(exc, 300)
        raise StartupError(f"--dtype {dtype} cannot be used: torchao refuses it ({text})") from exc

    def undo() -> None:
        for layer, weight in weights.items():
            layer.weight = weight

    return undo
