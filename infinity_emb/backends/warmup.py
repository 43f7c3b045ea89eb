"""Find the smallest batch size, in tokens, at which a device reaches its full speed."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence

from infinity_emb.backends.base import Backend, Encode
from infinity_emb.backends.probes import (
    as_inputs,
    fill_batch,
    measure_rates,
    measure_tokens_per_s,
    mixed_texts,
)
from infinity_emb.items import Encoded, InputOptions, number_inputs
from infinity_emb.storage.load_progress import report_stage

DEFAULT_BATCH_TOKENS = {"cpu": 1024, "mps": 8192, "cuda": 16_384}
# Other libraries' names of devices that are not discrete GPUs.
_KIND_BY_NAME = {"cpu": "cpu", "openvino": "cpu", "mps": "mps", "coreml": "mps"}
_CANDIDATES = {"cpu": (512, 1024, 2048), "mps": (2048, 4096, 8192, 16_384)}
_CANDIDATES_GPU = (4096, 8192, 16_384, 32_768, 65_536)
# Gains in speed for which the latency of a larger batch is accepted.
_WORTHWHILE_GAIN = 1.04
_WORTHWHILE_GAIN_ON_CPU = 1.15
_DEADLINE_S = 2.5
_MAX_TURNS = 4


def get_device_kind(name: str) -> str:
    """Return `cpu`, `mps` or `cuda` for the name of a device: `cuda:1`, `xpu:0`, `tensorrt`."""
    return _KIND_BY_NAME.get(name.partition(":")[0], "cuda")


def find_batch_tokens(backend: Backend, samples: Sequence[Encoded], *, device_kind: str) -> int:
    """Return the smallest batch size, in tokens, that no larger one beats by more than a few per cent.

    On a CPU, return the default size unless another is clearly faster: the rates are similar there, and
    other processes disturb the measurement.

    samples: inputs to fill batches with, short and long in turn.
    device_kind: "cpu", "mps" or "cuda"; determines the sizes that are tried.
    Sizes are measured in turns and the best turn of each counts, so that a short disturbance has no effect.
    Measuring stops at a deadline, and at the first size that does not fit into memory.
    """
    report_stage("warming up")
    deadline_s = time.monotonic() + _DEADLINE_S
    batches = _fitting_batches(backend, samples, device_kind, deadline_s)
    rates = measure_rates(
        {size: functools.partial(measure_tokens_per_s, backend, batch) for size, batch in batches.items()},
        max_rounds=_MAX_TURNS,
        deadline_s=deadline_s,
    )
    is_cpu = device_kind == "cpu" and DEFAULT_BATCH_TOKENS["cpu"] in rates
    best = DEFAULT_BATCH_TOKENS["cpu"] if is_cpu else min(rates)
    for num_tokens, rate in rates.items():
        if rate > rates[best] * (_WORTHWHILE_GAIN_ON_CPU if is_cpu else _WORTHWHILE_GAIN):
            best = num_tokens
    return best


def _fitting_batches(
    backend: Backend, samples: Sequence[Encoded], device_kind: str, deadline_s: float
) -> dict[int, list[Encoded]]:
    """Compute a batch of each size once, up to the deadline; return those that fit, at least one, by size."""
    batches: dict[int, list[Encoded]] = {}
    for num_tokens in _CANDIDATES.get(device_kind, _CANDIDATES_GPU):
        batch = fill_batch(samples, num_tokens)
        try:
            backend.launch(batch).result()
        except (MemoryError, RuntimeError):  # torch's out-of-memory error is a RuntimeError
            if not batches:
                raise
            break
        batches[num_tokens] = batch
        if time.monotonic() > deadline_s:
            break
    return batches


def encode_samples(encode: Encode, options: InputOptions, *, is_pair: bool) -> list[Encoded]:
    """Encode texts or pairs of mixed length; the model truncates those that are over its limit."""
    texts = mixed_texts()
    return encode(number_inputs(as_inputs(texts, are_pairs=is_pair, query=texts[0])), options)
