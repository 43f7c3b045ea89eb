"""Find the batch size, in tokens, from which on more tokens do not make a device faster.

Knows nothing of what computes: it launches batches of a backend and looks at the clock.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

from infinity_emb.backends.base import Backend, Encoded, Input, InputOptions, Pair, Prepare

DEFAULT_BATCH_TOKENS = {"cpu": 1024, "mps": 8192, "cuda": 16_384}
_CANDIDATES = {"cpu": (512, 1024, 2048), "mps": (2048, 4096, 8192, 16_384)}
_CANDIDATES_GPU = (4096, 8192, 16_384, 32_768, 65_536)
# A larger batch must be so much faster to be worth its latency.
_WORTHWHILE_GAIN = 1.04
_DEADLINE_S = 2.5
_NUM_WORDS = (12, 100, 25, 200, 50)
_WORDS = ("the", "river", "carries", "small", "boats", "past", "3", "old", "mills,", "(uncounted)", "daily.")


def find_batch_tokens(backend: Backend, samples: Sequence[Encoded], *, device_kind: str) -> int:
    """The smallest batch, in tokens, whose rate no larger one beats by more than a few per cent.

    samples: what to make batches of, short and long inputs in turn.
    device_kind: "cpu", "mps" or "cuda", for the sizes that are worth trying.
    Stops at a deadline, or at the first size that the device has no memory for, with the best so far.
    """
    started_s = time.monotonic()
    best_tokens, best_rate = 0, 0.0
    for num_tokens in _CANDIDATES.get(device_kind, _CANDIDATES_GPU):
        batch = _batch_of(samples, num_tokens)
        try:
            batch_s = seconds_per_batch(lambda: backend.launch(batch).collect())  # noqa: B023
        except (MemoryError, RuntimeError):  # torch's out-of-memory error is a RuntimeError
            if not best_tokens:
                raise
            break
        rate = sum(item.num_tokens for item in batch) / batch_s
        if not best_tokens or rate > best_rate * _WORTHWHILE_GAIN:
            best_tokens, best_rate = num_tokens, rate
        if time.monotonic() - started_s > _DEADLINE_S:
            break
    return best_tokens


def seconds_per_batch(compute: Callable[[], Any], num_runs: int = 2) -> float:
    """The shortest of a few runs after one that does not count."""
    compute()
    durations = []
    for _ in range(num_runs):
        started_s = time.perf_counter()
        compute()
        durations.append(time.perf_counter() - started_s)
    return min(durations)


def sample_inputs(prepare: Prepare, options: InputOptions, *, is_pair: bool) -> list[Encoded]:
    """Texts or pairs of mixed length, as the model reads them; it cuts those that are over its limit."""
    texts = [" ".join(itertools.islice(itertools.cycle(_WORDS), num_words)) for num_words in _NUM_WORDS]
    inputs: list[Input] = [Pair(texts[0], text) for text in texts] if is_pair else list(texts)
    return prepare(inputs, options)


def _batch_of(samples: Sequence[Encoded], num_tokens: int) -> list[Encoded]:
    """Samples over and over, `num_tokens` in all or a little more."""
    batch: list[Encoded] = []
    for sample in itertools.cycle(samples):
        if num_tokens <= 0:
            return batch
        batch.append(sample)
        num_tokens -= sample.num_tokens
    return batch
