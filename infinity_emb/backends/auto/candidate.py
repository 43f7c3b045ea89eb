"""A loaded model whose speed and outputs are compared with those of another engine.

It computes as on a busy server: all replicas at once, with as many batches in flight as a worker thread
keeps. Tokenizing is left out, as it is the same for all engines.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from infinity_emb.backends.base import Backend, LoadedModel
from infinity_emb.backends.closeness import Scores, make_scores
from infinity_emb.backends.probes import (
    as_inputs,
    fill_batch,
    measure_rates,
    measure_tokens_per_s,
    passages,
    short_texts,
)
from infinity_emb.items import BatchOutputs, Encoded, Float32Array, InputOptions, SparseVector, number_inputs
from infinity_emb.types import ModelInfo, ModelKind, OutputName

# The best turn of each counts; the first ones warm up.
_MIN_ROUNDS = 3
_MAX_ROUNDS = 16


def can_measure(info: ModelInfo) -> bool:
    """Tell whether a model takes texts, which are needed to measure it."""
    return bool({"embed", "rerank", "classify"}.intersection(info.capabilities))


class Candidate:
    """A loaded model with a thread for each of its replicas, until it is closed."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self._threads = [
            ThreadPoolExecutor(1, thread_name_prefix="infinity-auto", initializer=replica.prepare_thread)
            for replica in model.replicas
        ]

    def close(self) -> None:
        """End the threads; the model can still be used."""
        for thread in self._threads:
            thread.shutdown()

    def measure_tokens_per_s(self, min_turn_s: float) -> float:
        """Measure short texts and passages; return the geometric mean, so that both count the same."""
        return math.exp(statistics.fmean(math.log(self._measure(each, min_turn_s)) for each in self._batches))

    def compute_outputs(self, *, are_alone: bool = False) -> list[Float32Array | SparseVector]:
        """Compute every short text and passage; return all values of one output, then those of the next.

        are_alone: compute each one in a separate batch, to show how much batching changes outputs.
        """
        outputs = self.model.info.outputs or ("dense",)
        items = [item for texts in (short_texts(), passages()) for item in self._encode(texts, outputs)]
        computed = [
            self._threads[0].submit(_compute, self.model.replicas[0], batch).result()
            for batch in _split_batches(items, 1 if are_alone else self.model.max_batch_tokens)
        ]
        return [value for name in outputs for each in computed for value in each[name]]

    def make_scores(self, outputs: Sequence[Float32Array | SparseVector]) -> Scores:
        """Return the scores that follow from what `compute_outputs` returned."""
        info = self.model.info
        num_outputs = len(info.outputs) or 1
        return make_scores(outputs, info.kind, self.model.activate, num_outputs=num_outputs)

    @functools.cached_property
    def _batches(self) -> list[list[Encoded]]:
        """One batch of short texts and one of passages, as large as the model takes."""
        outputs = (self.model.info.outputs or ("dense",))[:1]
        samples = [self._encode(texts, outputs) for texts in (short_texts(), passages())]
        return [fill_batch(each, self.model.max_batch_tokens) for each in samples]

    def _encode(self, texts: Sequence[str], outputs: tuple[OutputName, ...]) -> list[Encoded]:
        inputs = as_inputs(texts, are_pairs=self.model.info.kind is ModelKind.reranker)
        return self.model.encode(
            number_inputs(inputs), InputOptions(task=self.model.sample_task, outputs=outputs)
        )

    def _measure(self, batch: Sequence[Encoded], min_turn_s: float) -> float:
        turns = [
            thread.submit(
                measure_tokens_per_s,
                replica,
                batch,
                num_in_flight=replica.num_in_flight,
                min_duration_s=min_turn_s,
            )
            for thread, replica in zip(self._threads, self.model.replicas, strict=True)
        ]
        return sum(turn.result() for turn in turns)


def compare_speed(
    challenger: Candidate, best: Candidate, *, max_duration_s: float = 6.0, min_turn_s: float = 0.05
) -> float:
    """Return the speed of the challenger relative to the best one so far.

    max_duration_s: no round starts after it, except for the first few.
    min_turn_s: least time of a turn, since one batch on a fast device takes too little to measure.
    """
    rates = measure_rates(
        {each: functools.partial(each.measure_tokens_per_s, min_turn_s) for each in (best, challenger)},
        min_rounds=_MIN_ROUNDS,
        max_rounds=_MAX_ROUNDS,
        deadline_s=time.monotonic() + max_duration_s,
    )
    return rates[challenger] / rates[best]


def _compute(replica: Backend, batch: Sequence[Encoded]) -> BatchOutputs:
    return replica.launch(batch).result()


def _split_batches(items: Sequence[Encoded], max_tokens: int) -> Iterator[list[Encoded]]:
    """Yield batches of at most `max_tokens`, or of one item."""
    batch: list[Encoded] = []
    for item in items:
        if batch and sum(each.num_tokens for each in batch) + item.num_tokens > max_tokens:
            yield batch
            batch = []
        batch.append(item)
    yield batch
