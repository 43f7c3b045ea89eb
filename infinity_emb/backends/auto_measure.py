"""How fast a loaded model is beside another one, and what it answers.

A model computes as it would for a loaded server: all replicas at once, with as many batches under way as the
worker keeps. Tokenizing is left out: it is the same for all engines. Knows nothing of engines' names, nor of
who is chosen.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TypeAlias

from infinity_emb.agreement import cosine, difference, scattered
from infinity_emb.backends.auto_choice import Agreement
from infinity_emb.backends.base import (
    Answers,
    Backend,
    Encoded,
    Input,
    InputOptions,
    Launched,
    LoadedModel,
    Pair,
    Rows,
    SparseRow,
)
from infinity_emb.backends.warmup import batch_of
from infinity_emb.calibration import calibration_texts
from infinity_emb.primitives import ModelInfo, ModelKind, OutputName

# Two models take turns until the deadline, at least so often; a first round does not count.
_DEADLINE_S = 6.0
_MIN_ROUNDS = 2
_MAX_ROUNDS = 15
# A batch of a fast device is too short to be measured alone.
_MIN_TURN_S = 0.05
_NUM_SHORT = 48
# Passages of so many of the package's texts, of about 25 tokens each.
_TEXTS_PER_PASSAGE = (6, 14, 3, 10, 5, 12, 8, 4)
_QUERY = "Which of these texts is about rivers, trains or money?"

Answer: TypeAlias = "Rows | SparseRow"


def takes_texts(info: ModelInfo) -> bool:
    """Whether a model can be measured here at all."""
    return bool({"embed", "rerank", "classify"}.intersection(info.capabilities))


class Contender:
    """A loaded model with a thread for each of its replicas, until it is closed."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self._threads = [
            ThreadPoolExecutor(1, thread_name_prefix="infinity-auto", initializer=replica.prepare_thread)
            for replica in model.replicas
        ]

    def close(self) -> None:
        """End the threads; the model stays as it is."""
        for thread in self._threads:
            thread.shutdown()

    def tokens_per_s(self) -> float:
        """Of short texts and of passages, and the geometric mean of both, so that each has its weight."""
        return math.exp(statistics.fmean(math.log(self._turn(batch)) for batch in self._batches))

    def answers(self) -> list[list[Answer]]:
        """For each output of the model, what it answers to each text."""
        info = self.model.info
        inputs = [each for inputs in _workloads(info.kind) for each in inputs]
        items = self._prepare(inputs, _outputs(info))
        columns = [
            self._threads[0].submit(_compute, self.model.replicas[0], batch).result()
            for batch in _cut(items, self.model.max_batch_tokens)
        ]
        return [[entry for column in columns for entry in column[name]] for name in _outputs(info)]

    @cached_property
    def _batches(self) -> list[list[Encoded]]:
        """One of short texts and one of passages, as large as the model takes."""
        info = self.model.info
        samples = [self._prepare(inputs, _outputs(info)[:1]) for inputs in _workloads(info.kind)]
        return [batch_of(each, self.model.max_batch_tokens) for each in samples]

    def _prepare(self, inputs: Sequence[Input], outputs: tuple[OutputName, ...]) -> list[Encoded]:
        return self.model.prepare(inputs, InputOptions(outputs=outputs))

    def _turn(self, batch: Sequence[Encoded]) -> float:
        turns = [
            thread.submit(_tokens_per_s, replica, batch)
            for thread, replica in zip(self._threads, self.model.replicas, strict=True)
        ]
        return sum(turn.result() for turn in turns)


def speed_ratio(
    challenger: Contender, best: Contender, *, now_s: Callable[[], float] = time.monotonic
) -> float:
    """How many times as fast the one is as the other.

    They take turns, and the median of the rounds' ratios counts: a slow moment of the machine slows both, or
    one round.
    """
    deadline_s = now_s() + _DEADLINE_S
    ratios: list[float] = []
    while len(ratios) <= _MIN_ROUNDS or (len(ratios) <= _MAX_ROUNDS and now_s() < deadline_s):
        order = (challenger, best) if len(ratios) % 2 else (best, challenger)
        rates = {each: each.tokens_per_s() for each in order}
        ratios.append(rates[challenger] / rates[best])
    return statistics.median(ratios[1:])


def agreement_of(
    answers: Sequence[Sequence[Answer]], expected: Sequence[Sequence[Answer]], kind: ModelKind
) -> Agreement:
    """The worst of all answers, each as `Contender.answers` gives them."""
    pairs = [
        _as_rows(*both)
        for column, wanted in zip(answers, expected, strict=True)
        for both in zip(column, wanted, strict=True)
    ]
    is_score = kind in (ModelKind.reranker, ModelKind.classifier)
    return Agreement(
        cosine=None if is_score else min(cosine(*both) for both in pairs),
        difference=max(difference(*both) for both in pairs),
    )


def _workloads(kind: ModelKind) -> list[list[Input]]:
    """Short texts, and passages; pairs with one query for a reranker."""
    texts = calibration_texts()
    starts = range(0, len(texts), len(texts) // len(_TEXTS_PER_PASSAGE))
    passages = [
        " ".join(texts[start : start + num]) for start, num in zip(starts, _TEXTS_PER_PASSAGE, strict=False)
    ]
    loads = (texts[:: len(texts) // _NUM_SHORT], passages)
    if kind is ModelKind.reranker:
        return [[Pair(_QUERY, text) for text in load] for load in loads]
    return [list(load) for load in loads]


def _outputs(info: ModelInfo) -> tuple[OutputName, ...]:
    return info.outputs or ("dense",)  # which scores are, too


def _cut(items: Sequence[Encoded], max_tokens: int) -> list[list[Encoded]]:
    """Batches of at most so many tokens, or of one item."""
    batches: list[list[Encoded]] = [[]]
    num_tokens = 0
    for item in items:
        if batches[-1] and num_tokens + item.num_tokens > max_tokens:
            batches.append([])
            num_tokens = 0
        batches[-1].append(item)
        num_tokens += item.num_tokens
    return batches


def _tokens_per_s(replica: Backend, batch: Sequence[Encoded]) -> float:
    """With as many batches under way as the worker has."""
    started_s = time.perf_counter()
    in_flight: deque[Launched] = deque()
    num_batches = 0
    while num_batches < replica.num_in_flight or time.perf_counter() - started_s < _MIN_TURN_S:
        if len(in_flight) == replica.num_in_flight:
            in_flight.popleft().collect()
        in_flight.append(replica.launch(batch))
        num_batches += 1
    for launched in in_flight:
        launched.collect()
    num_tokens = num_batches * sum(item.num_tokens for item in batch)
    return num_tokens / (time.perf_counter() - started_s)


def _compute(replica: Backend, batch: Sequence[Encoded]) -> Answers:
    return replica.launch(batch).collect()


def _as_rows(answer: Answer, expected: Answer) -> tuple[Rows, Rows]:
    """Sparse rows have no width of their own."""
    if isinstance(answer, SparseRow) and isinstance(expected, SparseRow):
        width = 1 + max(int(each.indices.max(initial=0)) for each in (answer, expected))
        return scattered(answer, width), scattered(expected, width)
    assert not isinstance(answer, SparseRow)
    assert not isinstance(expected, SparseRow)
    return answer, expected
