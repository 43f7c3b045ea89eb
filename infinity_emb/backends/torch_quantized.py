"""Put a loaded model into int8 or fp8, and keep that only where it pays and its answers stay close.

Only the `Linear` layers in the network's blocks change; heads, pooling and projections stay as they are. On a
CPU they become those of `torch_int8.py`; on CUDA torchao quantises them, per channel and token as well. What
is reported is measured at each start, on this machine and with this model: its answers before and after.
Knows nothing of layouts, devices' choice or replicas.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.base.model import BaseModel
from torch import nn

from infinity_emb.agreement import cosine
from infinity_emb.backends.base import Rows
from infinity_emb.backends.torch_cores import one_core
from infinity_emb.backends.torch_device import Choice
from infinity_emb.backends.torch_int8 import Int8Linear, LastRows, RowCoder, rounding_error
from infinity_emb.backends.torch_models import transformers_of
from infinity_emb.backends.torch_reference import Reference
from infinity_emb.backends.torch_smoothing import inner_linears, inputs_seen
from infinity_emb.calibration import calibration_texts
from infinity_emb.errors import StartupError, one_line
from infinity_emb.primitives import Dtype, ModelKind

logger = logging.getLogger("infinity_emb")

# A model whose answers are further from its own is not served. Less than what `agreement.BOUNDS` asks of each
# answer: that is for what `--engine auto` chooses by itself, this for what somebody has asked for by name.
_LOWEST_MEAN = 0.99
# Of the package's texts, so many apart: what smoothing is found with, and others to compare answers on.
_CALIBRATION = slice(0, None, 4)
_COMPARISON = slice(2, None, 12)

_NUM_TIMED = 3

Undo = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Closeness:
    """How close answers are to those before: each one's cosine, or the correlation of all scores."""

    mean: float
    lowest: float
    is_of_scores: bool

    @property
    def is_enough(self) -> bool:
        """Whether the model can be served; one answer that is no number, or 0, is enough to refuse it."""
        return self.mean >= _LOWEST_MEAN and self.lowest > 0

    def __str__(self) -> str:
        if self.is_of_scores:
            return f"scores correlate {self.mean:.4f}"
        return f"mean cosine {self.mean:.4f}, lowest {self.lowest:.4f}"


def quantize(model: BaseModel, kind: ModelKind, dtype: Dtype, full: Choice) -> Choice:
    """Put the model into int8 or fp8 in place, or leave it in the format that it is in.

    full: the model's format until now. Returns the one that it is in now, and why.
    Raises StartupError for a model that cannot be quantised, or whose answers move too far.
    """
    layers = inner_linears(transformer.model for transformer in transformers_of(model))
    if not layers:
        raise StartupError(_refusal(dtype, full, "the model has no Linear layers in blocks"))
    try:
        trial = _try(model, kind, dtype, layers)
    except StartupError:
        raise
    except Exception as exc:  # whatever the code of a model raises that does not expect such layers
        raise StartupError(
            _refusal(dtype, full, f"the model was tried and failed ({type(exc).__name__}: {exc})")
        ) from exc
    if not trial.closeness.is_enough:
        told = f"its answers move too far ({trial.closeness}; {_LOWEST_MEAN} is the limit, and 0 of each)"
        raise StartupError(_refusal(dtype, full, told))
    if trial.gain <= 1:
        trial.undo()
        reason = f"{dtype} was asked for and measured {1 / trial.gain:.1f}x slower than {full.value} here"
        logger.warning("using %s: %s", full.value, reason)
        return Choice(full.value, reason)
    for transformer in transformers_of(model):
        network: Any = transformer.model
        network.number_format = torch.int8  # how close packed rows can be; fp8 rounds as coarsely
    reason = f"measured {trial.gain:.1f}x as fast as {full.value} here, {trial.closeness} to it"
    return Choice(dtype.value, reason)


class _Trial(NamedTuple):
    """What came of quantising: speed as a multiple of the format before, and how to go back to it."""

    gain: float
    closeness: Closeness
    undo: Undo


def _try(model: BaseModel, kind: ModelKind, dtype: Dtype, layers: Sequence[nn.Linear]) -> _Trial:
    with one_core():
        before, full_s = _answers(model, kind), seconds_per_answer(model)
        undo = _to_int8(model, kind, layers) if model.device.type == "cpu" else _by_torchao(layers, dtype)
        quantized_s = seconds_per_answer(model)
        closeness = _closeness(before, _answers(model, kind), kind)
    return _Trial(full_s / quantized_s, closeness, undo)


def _refusal(dtype: Dtype, full: Choice, reason: str) -> str:
    return f"--dtype {dtype} cannot be used: {reason}; use --dtype {full.value}"


def seconds_per_answer(model: BaseModel) -> float:
    """The best time for a small batch of texts, or pairs, through sentence-transformers itself.

    On a CPU it is one core's time for this alone, whatever else the machine is busy with.
    """
    texts = ["Few bits must earn their place: seven words of 3.14159, rivers and interest rates. " * 4] * 8
    compute: Any = model.predict if isinstance(model, CrossEncoder) else model.encode
    given = [(text, text) for text in texts] if _takes_pairs(model) else texts
    clock = time.thread_time if model.device.type == "cpu" else time.perf_counter
    durations = []
    with one_core():
        for _ in range(1 + _NUM_TIMED):  # the first one does not count
            started_s = clock()
            compute(given, show_progress_bar=False)
            durations.append(clock() - started_s)
    return min(durations[1:])


def _takes_pairs(model: BaseModel) -> bool:
    return isinstance(model, CrossEncoder) and model.num_labels == 1


def _answers(model: BaseModel, kind: ModelKind, which: slice = _COMPARISON) -> list[Rows]:
    """What the model says of the package's texts: vectors, several a text for some kinds, or scores."""
    reference, texts = Reference(model), calibration_texts()[which]
    if kind is ModelKind.reranker:
        return [reference.score(texts[0], texts[1:])]
    if kind is ModelKind.classifier:
        return [reference.classify(text) for text in texts]
    return [reference.embed(text) for text in texts]


def _closeness(before: Sequence[Rows], after: Sequence[Rows], kind: ModelKind) -> Closeness:
    """Answers of one model to the same inputs, in two formats; what is no number is not close."""
    if kind in (ModelKind.reranker, ModelKind.classifier):
        scores, others = (np.concatenate(each).astype(np.float64) for each in (before, after))
        correlation = float(np.corrcoef(scores, others)[0, 1])
        return Closeness(correlation, correlation, is_of_scores=True)
    rows, others = (np.concatenate([np.atleast_2d(row) for row in each]) for each in (before, after))
    cosines = [cosine(*both) for both in zip(others, rows, strict=True)]
    return Closeness(float(np.mean(cosines)), min(cosines), is_of_scores=False)


def _to_int8(model: BaseModel, kind: ModelKind, layers: Sequence[nn.Linear]) -> Undo:
    """Each layer that reads anything of a text becomes an `Int8Linear`."""
    with inputs_seen(layers) as seen:
        _answers(model, kind, _CALIBRATION)
    last = LastRows()
    table: dict[nn.Module, nn.Module] = {}
    with torch.inference_mode():
        for shared in seen:
            coder = RowCoder(shared.best_smoothing(rounding_error), last)
            for layer in shared.layers:
                table[layer] = Int8Linear(layer.weight, layer.bias, coder)
    _swap(model, table)
    return lambda: _swap(model, {after: before for before, after in table.items()})


def _swap(model: nn.Module, table: dict[nn.Module, nn.Module]) -> None:
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in table:
                setattr(parent, name, table[child])


def _by_torchao(layers: Sequence[nn.Linear], dtype: Dtype) -> Undo:
    """Raises StartupError where torchao is not installed, and where it refuses this GPU."""
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
        # Else torchao changes settings of torch for the whole process, and so for other models.
        config: Any = make_config(granularity=ao.PerRow(), set_inductor_config=False)
        for layer in layers:
            ao.quantize_(layer, config)
    except Exception as exc:  # assertions and more, by version and GPU
        text = one_line(exc, 300)
        raise StartupError(f"--dtype {dtype} cannot be used: torchao refuses it ({text})") from exc

    def undo() -> None:
        for layer, weight in weights.items():
            layer.weight = weight

    return undo
