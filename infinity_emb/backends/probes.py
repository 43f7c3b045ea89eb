"""Provide texts to check and measure a model with while it loads, and the loops that measure its speed."""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from infinity_emb.backends.base import Backend, InFlightBatch
from infinity_emb.backends.sample_texts import load_sample_texts
from infinity_emb.items import Encoded, Input, Pair

K = TypeVar("K")

_LONGER_TEXT = "Größe, naïve café, 東京 and \U0001f600; snake_case() over two\nlines. " * 3
# The last two are so similar in length that they share a padded batch, which shows whether padding matters.
PARITY_TEXTS = ("The quick brown fox: 3.14 EUR, isn't it?", _LONGER_TEXT, f"{_LONGER_TEXT}And more.")

_NUM_WORDS = (12, 100, 25, 200, 50)
_WORDS = ("the", "river", "carries", "small", "boats", "past", "3", "old", "mills,", "(uncounted)", "daily.")
_NUM_SHORT_TEXTS = 48
# The number of sample texts in each passage, of about 25 tokens each.
_TEXTS_PER_PASSAGE = (6, 14, 3, 10, 5, 12, 8, 4)
_MAX_CALLS, _SMALLEST_S = 100, 1e-9
_QUERY = "Which of these texts is about rivers, trains or money?"


def mixed_texts() -> list[str]:
    """Return a few texts of 12 to 200 words, short and long in turn."""
    return [" ".join(itertools.islice(itertools.cycle(_WORDS), num_words)) for num_words in _NUM_WORDS]


def short_texts() -> list[str]:
    """Return 48 real texts, of about 25 tokens on average."""
    texts = load_sample_texts()
    return texts[:: len(texts) // _NUM_SHORT_TEXTS]


def passages() -> list[str]:
    """Return 8 passages of 75 to 350 tokens, made of real texts."""
    texts = load_sample_texts()
    starts = range(0, len(texts), len(texts) // len(_TEXTS_PER_PASSAGE))
    return [
        " ".join(texts[start : start + num]) for start, num in zip(starts, _TEXTS_PER_PASSAGE, strict=False)
    ]


def as_inputs(texts: Sequence[str], *, are_pairs: bool, query: str = _QUERY) -> list[Input]:
    """Return the texts, or each as a document paired with one query."""
    return [Pair(query, text) for text in texts] if are_pairs else list(texts)


def fill_batch(samples: Iterable[Encoded], num_tokens: int) -> list[Encoded]:
    """Repeat the samples until they have `num_tokens` in all, or a few more."""
    batch: list[Encoded] = []
    for sample in itertools.cycle(samples):
        if num_tokens <= 0:
            break
        batch.append(sample)
        num_tokens -= sample.num_tokens
    return batch


def measure_tokens_per_s(
    backend: Backend, batch: Sequence[Encoded], *, num_in_flight: int = 1, min_duration_s: float = 0.0
) -> float:
    """Compute a batch over and over and return the rate.

    num_in_flight: batches in flight at once; at least as many are computed.
    min_duration_s: least time to measure, since one batch on a fast device takes too little.
    """
    started_s = time.perf_counter()
    in_flight: deque[InFlightBatch] = deque()
    num_batches = 0
    while num_batches < num_in_flight or time.perf_counter() - started_s < min_duration_s:
        if len(in_flight) == num_in_flight:
            in_flight.popleft().result()
        in_flight.append(backend.launch(batch))
        num_batches += 1
    for launched in in_flight:
        launched.result()
    num_tokens = num_batches * sum(item.num_tokens for item in batch)
    return num_tokens / (time.perf_counter() - started_s)


def measure_calls_per_s(
    call: Callable[[], object],
    *,
    min_duration_s: float,
    read_clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Call over and over and return the rate.

    min_duration_s: least time to measure, by the clock; it ends earlier after _MAX_CALLS, in case the clock
    does not advance, as that of a thread may.
    """
    started_s, elapsed_s, num_calls = read_clock(), 0.0, 0
    while elapsed_s < min_duration_s and num_calls < _MAX_CALLS:
        call()
        num_calls += 1
        elapsed_s = read_clock() - started_s
    return num_calls / max(elapsed_s, _SMALLEST_S)


def measure_rates(
    candidates: Mapping[K, Callable[[], float]],
    *,
    max_rounds: int,
    min_rounds: int = 1,
    deadline_s: float = math.inf,
) -> dict[K, float]:
    """Measure each candidate once per round and return the best rate of each.

    Candidates take turns and the best turn counts, so that a moment when the machine is slow has no effect.
    deadline_s: by `time.monotonic`; no round starts after it, except for the first `min_rounds`.
    """
    rates = dict.fromkeys(candidates, 0.0)
    for number in range(max_rounds):
        if number >= min_rounds and time.monotonic() > deadline_s:
            break
        turns = list(candidates.items())
        for key, measure in turns[:: -1 if number % 2 else 1]:  # no candidate always comes first
            rates[key] = max(rates[key], measure())
    return rates
