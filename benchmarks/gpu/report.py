"""Format checks and speeds as a table for people and one JSON line for programs."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import sentence_transformers
import torch
import transformers

from benchmarks.gpu.checks import Check, name_dtype
from benchmarks.gpu.shapes import SPEED_SHAPES, Plan
from benchmarks.gpu.speeds import Speed, Spread


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Describe the machine and the versions that were measured."""
    is_cuda = device.type == "cuda"
    return {
        "machine": platform.node(),
        "device": torch.cuda.get_device_name(device)
        if is_cuda
        else platform.processor() or platform.machine(),
        "num_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if is_cuda else None,
        "transformers": transformers.__version__,
        "sentence_transformers": sentence_transformers.__version__,
    }


def format_check(check: Check) -> str:
    """Format one line."""
    return f"{'ok  ' if check.is_passed else 'FAIL'} {check.name}: {check.detail}"


def format_speed(speed: Speed) -> str:
    """Format one line of the table."""
    packed, encode, forward = (_format_rate(rate) for rate in (speed.packed, speed.encode, speed.forward))
    line = (
        f"{speed.model:12}{speed.workload:>6}"
        f" {packed:>27} @{speed.batch_tokens:<6}{speed.share:6.1%} {speed.host_share:5.0%}"
        f" {encode:>27} @{speed.encode_batch_size:<4}{speed.ratio_to_encode:6.2f}x"
        f" {forward:>27} @{speed.forward_batch_size:<4}{speed.ratio_to_forward:6.2f}x"
        f" {speed.forward_share:6.1%}"
    )
    return f"{line}\n    LAUNCHING WAITS: {speed.stream_stops}" if speed.stream_stops else line


TABLE_HEAD = (
    f"{'model':12}{'length':>6} {'packed, tokens/s':>27} @{'tokens':6}{'share':>6} {'host':>5}"
    f" {'encode':>27} @{'size':4}{'ours':>7} {'forward alone':>27} @{'size':4}{'ours':>7} {'share':>6}"
)


def _format_rate(rate: Spread) -> str:
    unit, divisor = ("M", 1e6) if rate.median >= 1e6 else ("k", 1e3)
    low, median, high = (f"{value / divisor:.4g}" for value in (rate.lowest, rate.median, rate.highest))
    return f"{median} {unit} ({low} to {high})"


def format_matmul(speeds: Sequence[Speed], plan: Plan) -> str:
    """Format the rate of matrix products that the shares divide by."""
    matmul = _spread_matmul(speeds)
    return (
        f"share: of {matmul.median / 1e12:.4g} TFLOP/s ({matmul.lowest / 1e12:.4g} to"
        f" {matmul.highest / 1e12:.4g}), a {name_dtype(plan.dtype)} product of size {plan.matmul_size}"
    )


def summarize(
    checks: Sequence[Check], speeds: Sequence[Speed], plan: Plan, machine: dict[str, Any], *, is_small: bool
) -> dict[str, Any]:
    """Collect everything for the JSON line."""
    return {
        "benchmark": "gpu",
        **machine,
        "is_small": is_small,
        "models": {shape.name: shape.sizes_for(is_small=is_small) for shape in SPEED_SHAPES},
        "lengths": plan.workloads,
        "dtype": name_dtype(plan.dtype),
        "num_repeats": plan.num_repeats,
        "matmul_size": plan.matmul_size,
        "matmul_flops_per_s": asdict(_spread_matmul(speeds)),
        "is_passed": all(check.is_passed for check in checks),
        "checks": [asdict(check) for check in checks],
        "speeds": [asdict(speed) for speed in speeds],
    }


def _spread_matmul(speeds: Sequence[Speed]) -> Spread:
    return Spread.from_values([speed.matmul_flops_per_s.median for speed in speeds])
