"""Measure the tokens per second of each subject, beside the machine's rate of matrix products."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from benchmarks.gpu.models import copy_to_device, make_backend, make_random_ids, to_batch
from benchmarks.gpu.shapes import Plan, Shape
from benchmarks.gpu.subjects import (
    Subject,
    choose_fastest,
    make_encode_subject,
    make_forward_subject,
    make_packed_subject,
    synchronize,
    take_tokens,
    time_run,
)
from infinity_emb.backends.torch.backend import TorchBackend


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Hold the median and range of several measurements of one quantity."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def from_values(cls, values: Sequence[float]) -> Spread:
        return cls(median=float(np.median(values)), lowest=min(values), highest=max(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Hold the results of one model and one workload. Rates in tokens/s, padding not counted."""

    model: str
    workload: str
    packed: Spread
    batch_tokens: int
    encode: Spread
    encode_batch_size: int
    forward: Spread
    forward_batch_size: int
    flops_per_token: float
    matmul_flops_per_s: Spread  # measured in the same turns
    share: float  # of that rate
    forward_share: float
    ratio_to_encode: float
    ratio_to_forward: float
    host_share: float  # time to launch a batch on an idle device / time per batch; 1 on a CPU
    stream_stops: str | None  # what makes a launch wait for the device, if anything


def measure_shape(
    shape: Shape, model: SentenceTransformer, plan: Plan, device: torch.device, product: MatrixProduct
) -> Iterator[Speed]:
    """Measure every workload of one model; both copies of it stay on the device."""
    peer = copy_to_device(model, device, plan.dtype)
    backend, _ = make_backend(copy_to_device(model, device, plan.dtype))
    transformer: Any = model[0]
    network: torch.nn.Module = transformer.model
    for workload, lengths in plan.workloads.items():
        flops = count_flops_per_token(network, lengths, is_causal=shape.is_causal)
        num_tokens = int(plan.run_s * 0.4 * product.rate() / flops)  # assumes 40 % of the rate
        subjects = _choose_subjects(backend, peer, lengths, plan, device, num_tokens)
        turns = [  # in turn, so that a slow minute hits all of them
            [*(subject.rate(device) for subject in subjects), product.rate()] for _ in range(plan.num_repeats)
        ]
        packed, encode, forward, matmul = (Spread.from_values(rates) for rates in zip(*turns, strict=True))
        yield Speed(
            model=shape.name,
            workload=workload,
            packed=packed,
            batch_tokens=subjects[0].setting,
            encode=encode,
            encode_batch_size=subjects[1].setting,
            forward=forward,
            forward_batch_size=subjects[2].setting,
            flops_per_token=flops,
            matmul_flops_per_s=matmul,
            share=packed.median * flops / matmul.median,
            forward_share=forward.median * flops / matmul.median,
            ratio_to_encode=packed.median / encode.median,
            ratio_to_forward=packed.median / forward.median,
            host_share=measure_launch_s(backend, lengths, subjects[0].setting, device)
            * packed.median
            / subjects[0].setting,
            stream_stops=find_stream_stop(backend, lengths, subjects[0].setting),
        )


def _choose_subjects(
    backend: TorchBackend,
    peer: SentenceTransformer,
    lengths: Sequence[int],
    plan: Plan,
    device: torch.device,
    num_tokens: int,
) -> tuple[Subject, Subject, Subject]:
    packed = [partial(make_packed_subject, backend, lengths, size, num_tokens) for size in plan.token_budgets]
    encode = [partial(make_encode_subject, peer, lengths, size, num_tokens) for size in plan.batch_sizes]
    forward = [partial(make_forward_subject, peer, lengths, size, num_tokens) for size in plan.batch_sizes]
    return choose_fastest(packed, device), choose_fastest(encode, device), choose_fastest(forward, device)


def measure_launch_s(
    backend: TorchBackend, lengths: Sequence[int], batch_tokens: int, device: torch.device
) -> float:
    """Return the median time in which the host lays out a batch and queues its work."""
    batch = to_batch([make_random_ids(length) for length in take_tokens(lengths, batch_tokens)])
    durations = []
    for _ in range(5):
        synchronize(device)
        started_s = time.perf_counter()
        launched = backend.launch(batch)
        durations.append(time.perf_counter() - started_s)
        launched.result()
    return float(np.median(durations))


def find_stream_stop(backend: TorchBackend, lengths: Sequence[int], batch_tokens: int) -> str | None:
    """Return what in a launch waits for the device, as torch reports it. Always None on a CPU."""
    if backend._device.type != "cuda":
        return None
    batch = to_batch([make_random_ids(length) for length in take_tokens(lengths, batch_tokens)])
    backend.launch(batch).result()
    torch.cuda.set_sync_debug_mode("error")
    try:
        launched = backend.launch(batch)
    except RuntimeError as exc:
        place = traceback.extract_tb(exc.__traceback__)[-1]
        return f"{place.filename}:{place.lineno} {place.name}: {str(exc).splitlines()[0]}"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    launched.result()
    return None


def count_flops_per_token(network: torch.nn.Module, lengths: Sequence[int], *, is_causal: bool) -> float:
    """Count the multiplications and additions of a forward pass, averaged over the tokens of `lengths`.

    Two per weight of the linear layers, and four per channel of attention and pair of tokens that attend
    to each other. Excluded: BERT's pooler, which is unused here, and all that is not a matrix product.
    """
    config: Any = network.config
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    num_weights = sum(
        module.weight.numel()
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear) and "pooler" not in name
    )
    num_pairs = sum(length * (length + 1) // 2 if is_causal else length * length for length in lengths)
    attention = 4 * width * config.num_hidden_layers * num_pairs / sum(lengths)
    return float(2 * num_weights + attention)


class MatrixProduct:
    """Multiply large random matrices, as the yardstick."""

    def __init__(self, size: int, device: torch.device, dtype: torch.dtype) -> None:
        self._left, self._right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        self._out = torch.empty_like(self._left)
        self._flops = 10 * 2 * size**3
        self._multiply()

    def rate(self) -> float:
        """Return operations per second."""
        return self._flops / time_run(self._multiply, self._out.device)

    def _multiply(self) -> None:
        for _ in range(10):
            torch.mm(self._left, self._right, out=self._out)
