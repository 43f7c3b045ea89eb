"""Find the batch size, in tokens, from which on more tokens do not make a device faster.

Knows nothing of what computes: it launches batches of a backend and looks at the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from infinity_emb.backends.base import Backend, Batch, TokenIds

DEFAULT_BATCH_TOKENS = {"cpu": 1024, "mps": 8192, "cuda": 16_384}
_CANDIDATES = {"cpu": (512, 1024, 2048), "mps": (2048, 4096, 8192, 16_384)}
_CANDIDATES_GPU = (4096, 8192, 16_384, 32_768, 65_536)
# A larger batch must be so much faster to be worth its latency.
_WORTHWHILE_GAIN = 1.04
_DEADLINE_S = 2.5
_SEQUENCE_TOKENS = (16, 128, 32, 256, 64)


def find_batch_tokens(backend: Backend, sample: TokenIds, *, device_kind: str) -> int:
    """The smallest batch, in tokens, whose rate no larger one beats by more than a few per cent.

    sample: token ids to make batches of, as long as the longest sequence that should be tried.
    device_kind: "cpu", "mps" or "cuda", for the sizes that are worth trying.
    Stops at a deadline, or at the first size that the device has no memory for, with the best so far.
    """
    started_s = time.monotonic()
    best_tokens, best_rate = 0, 0.0
    for num_tokens in _CANDIDATES.get(device_kind, _CANDIDATES_GPU):
        batch = sample_batch(sample, num_tokens)
        try:
            rate = len(batch.token_ids) / seconds_per_batch(lambda: backend.launch(batch).collect())  # noqa: B023
        except (MemoryError, RuntimeError):  # torch's out-of-memory error is a RuntimeError
            if not best_tokens:
                raise
            break
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


def sample_batch(sample: TokenIds, num_tokens: int) -> Batch:
    """Sequences of mixed length, `num_tokens` in all or a little more."""
    lengths: list[int] = []
    while sum(lengths) < num_tokens:
        lengths.append(min(_SEQUENCE_TOKENS[len(lengths) % len(_SEQUENCE_TOKENS)], len(sample)))
    return Batch(np.concatenate([sample[:length] for length in lengths]), lengths)
