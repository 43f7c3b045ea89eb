"""Finding the batch size, on backends whose speed is made up: the clock is theirs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest

from infinity_emb.backends import probes, warmup
from infinity_emb.backends.warmup import find_batch_tokens, get_device_kind
from infinity_emb.items import Encoded

SAMPLES = [Encoded(np.ones(length, dtype=np.int32)) for length in (16, 128, 32)]


@dataclass
class Device:
    """Takes so long for so many tokens, on a clock that nothing else moves."""

    seconds: Callable[[int], float]
    max_tokens: int = 10**9
    now_s: float = 0.0
    launched: list[int] = field(default_factory=list)

    def launch(self, batch: Sequence[Encoded]) -> Device:
        num_tokens = sum(item.num_tokens for item in batch)
        if num_tokens > self.max_tokens:
            raise RuntimeError("out of memory")
        self.launched.append(num_tokens)
        self.now_s += self.seconds(num_tokens)
        return self

    def result(self) -> None:
        pass


def find(device: Device, monkeypatch: pytest.MonkeyPatch, kind: str = "cpu") -> int:
    clock = SimpleNamespace(monotonic=lambda: device.now_s, perf_counter=lambda: device.now_s)
    for module in (warmup, probes):
        monkeypatch.setattr(module, "time", clock)
    return find_batch_tokens(device, SAMPLES, device_kind=kind)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cpu", "cpu"),
        ("openvino", "cpu"),
        ("mps", "mps"),
        ("cuda:1", "cuda"),
        ("xpu:0", "cuda"),
        ("tensorrt", "cuda"),
        ("dml", "cuda"),
    ],
)
def test_sizes_are_those_of_what_computes(name: str, kind: str) -> None:
    assert get_device_kind(name) == kind


def test_the_smallest_batch_wins_where_larger_ones_are_no_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find(Device(lambda num_tokens: num_tokens / 1e6), monkeypatch, "cuda") == 4096


def test_a_cpu_keeps_the_default_unless_another_size_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates = {512: 1.1, 1024: 1.0, 2048: 1.1}
    near = Device(lambda num_tokens: num_tokens / rates[min(rates, key=lambda size: abs(size - num_tokens))])
    seconds = near.seconds
    near.seconds = lambda num_tokens: seconds(num_tokens) / 1e6
    assert find(near, monkeypatch) == 1024
    assert find(Device(lambda num_tokens: num_tokens**1.5 / 1e6), monkeypatch) == 512


def test_a_larger_batch_wins_where_it_is_worth_its_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    overhead = Device(lambda num_tokens: 1.0 + num_tokens / 1e6)
    assert find(overhead, monkeypatch) == 2048


def test_one_slow_moment_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(lambda num_tokens: 0.0)
    # Two turns of the default size are slow, its others are not.
    device.seconds = lambda num_tokens: num_tokens / 1e6 * (9 if len(device.launched) in (5, 8) else 1)
    assert find(device, monkeypatch) == 1024


def test_a_size_that_does_not_fit_into_memory_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(lambda num_tokens: 1.0 / num_tokens, max_tokens=1200)
    assert find(device, monkeypatch) == 1024


def test_no_size_that_fits_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        find(Device(lambda num_tokens: 0.0, max_tokens=10), monkeypatch)


def test_a_slow_device_is_measured_no_longer_than_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(lambda num_tokens: num_tokens / 100)  # 5 seconds for the smallest batch
    assert find(device, monkeypatch) == 512
    assert len(device.launched) == 2
