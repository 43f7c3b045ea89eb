"""Find the batch size, in tokens, from which on more tokens do not make a device faster.

Knows nothing of what computes: it launches batches of a backend and looks at the clock.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

from infinity_emb.backends.base import Backend, Encoded, Input, InputOptions, Pair, Prepare

DEFAULT_BATCH_TOKENS = {"cpu": 1024, "mps": 8192, "cuda": 16_384}
# Of what other libraries compute on: their names of devices that are no GPU of a card.
_KIND_BY_NAME = {"cpu": "cpu", "openvino": "cpu", "mps": "mps", "coreml": "mps"}
_CANDIDATES = {"cpu": (512, 1024, 2048), "mps": (2048, 4096, 8192, 16_384)}
_CANDIDATES_GPU = (4096, 8192, 16_384, 32_768, 65_536)
# A larger batch must be so much faster to be worth its latency.
_WORTHWHILE_GAIN = 1.04
_WORTHWHILE_GAIN_ON_CPU = 1.15
_DEADLINE_S = 2.5
_MAX_TURNS = 4
_NUM_WORDS = (12, 100, 25, 200, 50)
_WORDS = ("the", "river", "carries", "small", "boats", "past", "3", "old", "mills,", "(uncounted)", "daily.")


def kind_of_device(name: str) -> str:
    """`cpu`, `mps` or `cuda`, by what a network is computed on: `cuda:1`, `xpu:0`, `tensorrt`."""
    return _KIND_BY_NAME.get(name.partition(":")[0], "cuda")


def find_batch_tokens(backend: Backend, samples: Sequence[Encoded], *, device_kind: str) -> int:
    """The smallest batch, in tokens, whose rate no larger one beats by more than a few per cent.

    On a CPU the default size, unless another is clearly faster: the rates lie near each other there, and
    other processes disturb what is measured.

    samples: what to make batches of, short and long inputs in turn.
    device_kind: "cpu", "mps" or "cuda", for the sizes that are worth trying.
    Sizes take turns and the best turn of each counts, so that a slow moment of the machine decides nothing.
    Stops at a deadline, and at the first size that the device has no memory for.
    """
    deadline_s = time.monotonic() + _DEADLINE_S
    batches = _fitting_batches(backend, samples, device_kind, deadline_s)
    rates = dict.fromkeys(batches, 0.0)
    for _ in range(_MAX_TURNS):
        for num_tokens, batch in batches.items():
            rates[num_tokens] = max(rates[num_tokens], _tokens_per_s(backend, batch))
        if time.monotonic() > deadline_s:
            break
    is_cpu = device_kind == "cpu" and DEFAULT_BATCH_TOKENS["cpu"] in rates
    best = DEFAULT_BATCH_TOKENS["cpu"] if is_cpu else min(rates)
    for num_tokens, rate in rates.items():
        if rate > rates[best] * (_WORTHWHILE_GAIN_ON_CPU if is_cpu else _WORTHWHILE_GAIN):
            best = num_tokens
    return best


def _fitting_batches(
    backend: Backend, samples: Sequence[Encoded], device_kind: str, deadline_s: float
) -> dict[int, list[Encoded]]:
    """By size, ascending: those that were computed once before the deadline, at least one."""
    batches: dict[int, list[Encoded]] = {}
    for num_tokens in _CANDIDATES.get(device_kind, _CANDIDATES_GPU):
        batch = batch_of(samples, num_tokens)
        try:
            backend.launch(batch).collect()
        except (MemoryError, RuntimeError):  # torch's out-of-memory error is a RuntimeError
            if not batches:
                raise
            break
        batches[num_tokens] = batch
        if time.monotonic() > deadline_s:
            break
    return batches


def _tokens_per_s(backend: Backend, batch: list[Encoded]) -> float:
    started_s = time.perf_counter()
    backend.launch(batch).collect()
    return sum(item.num_tokens for item in batch) / (time.perf_counter() - started_s)


def sample_inputs(prepare: Prepare, options: InputOptions, *, is_pair: bool) -> list[Encoded]:
    """Texts or pairs of mixed length, as the model reads them; it cuts those that are over its limit."""
    texts = [" ".join(itertools.islice(itertools.cycle(_WORDS), num_words)) for num_words in _NUM_WORDS]
    inputs: list[Input] = [Pair(texts[0], text) for text in texts] if is_pair else list(texts)
    return prepare(inputs, options)


def batch_of(samples: Sequence[Encoded], num_tokens: int) -> list[Encoded]:
    """Samples over and over, `num_tokens` in all or a little more."""
    batch: list[Encoded] = []
    for sample in itertools.cycle(samples):
        if num_tokens <= 0:
            return batch
        batch.append(sample)
        num_tokens -= sample.num_tokens
    return batch
