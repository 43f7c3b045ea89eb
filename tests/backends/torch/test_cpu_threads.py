"""Cores are divided by how many batches compute, and a small batch does not wake them all."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from infinity_emb.backends.base import FinishedBatch
from infinity_emb.backends.torch import cpu_threads
from infinity_emb.backends.torch.cpu_threads import (
    MIN_TOKENS_FOR_TWO_CORES,
    MIN_TOKENS_PER_CORE,
    SharedCores,
    choose_min_tokens,
    one_core,
)
from infinity_emb.items import Encoded
from tests.support.accelerated_models import make_batch

pytestmark = pytest.mark.model

MANY_TOKENS = 1000 * MIN_TOKENS_PER_CORE


@pytest.mark.parametrize(
    ("num_cores", "num_computing", "num_threads"),
    [(8, 1, 8), (8, 2, 4), (8, 3, 2), (8, 8, 1), (8, 20, 1), (1, 1, 1)],
)
def test_cores_are_divided_by_how_many_batches_compute(
    num_cores: int, num_computing: int, num_threads: int
) -> None:
    assert SharedCores(num_cores).count_threads(MANY_TOKENS, num_computing=num_computing) == num_threads


@pytest.mark.parametrize(
    ("num_tokens", "num_threads"), [(0, 1), (3, 1), (4, 2), (64, 2), (100, 3), (10_000, 8)]
)
def test_a_small_batch_wakes_few_cores(num_tokens: int, num_threads: int) -> None:
    assert SharedCores(8).count_threads(num_tokens, num_computing=1) == num_threads


def test_torch_computes_with_the_share_inside_the_block() -> None:
    cores = SharedCores(4)
    seen: list[int] = []

    def second() -> None:
        with cores.share(MANY_TOKENS):
            seen.append(torch.get_num_threads())

    before = torch.get_num_threads()
    try:
        with cores.share(MANY_TOKENS):
            seen.append(torch.get_num_threads())
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()
        with cores.share(MANY_TOKENS):
            seen.append(torch.get_num_threads())
    finally:
        torch.set_num_threads(before)
    assert seen == [4, 2, 4]


def test_a_batch_that_began_alone_keeps_its_cores_beside_another_one() -> None:
    """The number is each thread's own, OpenMP's as well as MKL's."""
    cores = SharedCores(4)

    def mine() -> list[str]:
        told = torch.__config__.parallel_info()
        return re.findall(r"(?:omp|mkl)_get_max_threads\(\) : (\d+)", told)

    def second() -> None:
        with cores.share(MANY_TOKENS):
            assert set(mine()) <= {"2"}

    before = torch.get_num_threads()
    try:
        with cores.share(MANY_TOKENS), ThreadPoolExecutor(1) as threads:
            threads.submit(second).result()
            assert torch.get_num_threads() == 4
            assert set(mine()) <= {"4"}
    finally:
        torch.set_num_threads(before)


def test_one_core_is_used_inside_the_block_and_as_many_as_before_after_it() -> None:
    before = torch.get_num_threads()
    with one_core():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


class VirtualClock:
    """Replace the module `time`; only batches take time."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.perf_counter = self.thread_time = self.monotonic = lambda: self.now_s


class TimedBackend:
    """Compute batches of at least so many tokens faster on two cores, and others on one."""

    num_in_flight = 1
    shares_device = True

    def __init__(self, cores: SharedCores, num_tokens_for_two: int, clock: VirtualClock) -> None:
        self._cores = cores
        self._clock = clock
        self._num_tokens_for_two = num_tokens_for_two
        self.launched: list[tuple[int, int]] = []  # tokens and cores
        self.threads: set[int] = set()

    def prepare_thread(self) -> None:
        """Need nothing."""

    def free_memory(self) -> None:
        """Have none."""

    def launch(self, batch: Sequence[Encoded], *, full_precision: bool = False) -> FinishedBatch:
        num_tokens = sum(item.num_tokens for item in batch)
        with self._cores.share(num_tokens):
            num_cores = torch.get_num_threads()
        self.launched.append((num_tokens, num_cores))
        self.threads.add(threading.get_ident())
        is_faster = (num_cores > 1) == (num_tokens >= self._num_tokens_for_two)
        self._clock.now_s += 0.001 if is_faster else 0.002
        return FinishedBatch({})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualClock:
    clock = VirtualClock()
    monkeypatch.setattr(cpu_threads, "time", clock)
    return clock


@pytest.mark.parametrize(
    ("num_tokens_for_two", "expected"),
    [(1, MIN_TOKENS_FOR_TWO_CORES), (11, 20), (40, 40), (80, 80), (81, 160)],
)
def test_the_smallest_batch_for_two_cores_is_measured(
    num_tokens_for_two: int, expected: int, clock: VirtualClock
) -> None:
    cores = SharedCores(8)
    replicas = [TimedBackend(cores, num_tokens_for_two, clock) for _ in range(2)]
    choose_min_tokens(cores, replicas, make_batch(30, 10))
    assert cores.min_tokens_for_two == expected
    assert {num_cores for _, num_cores in replicas[0].launched} == {1, 2}
    assert replicas[1].launched == [(10, 2)]
    assert not replicas[0].threads & replicas[1].threads
    assert [cores.count_threads(num, num_computing=1) for num in (expected - 1, expected)] == [
        1,
        max(2, expected // MIN_TOKENS_PER_CORE),
    ]
    assert cores.count_threads(10_000, num_computing=1) == 8


def test_an_image_never_stays_on_one_core(clock: VirtualClock) -> None:
    cores = SharedCores(8)
    choose_min_tokens(cores, [TimedBackend(cores, 10_000, clock)], make_batch(100))
    assert cores.min_tokens_for_two == 256  # which an image counts as


def test_after_the_deadline_the_next_larger_size_uses_two_cores(
    clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_threads, "_DEADLINE_S", -1.0)
    cores = SharedCores(8)
    backend = TimedBackend(cores, 40, clock)
    choose_min_tokens(cores, [backend], make_batch(10))
    assert cores.min_tokens_for_two == MIN_TOKENS_FOR_TWO_CORES
    assert backend.launched == [(10, 2)]


def test_a_batch_that_fails_leaves_all_cores(clock: VirtualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    cores = SharedCores(8)
    backend = TimedBackend(cores, 40, clock)
    monkeypatch.setattr(clock, "thread_time", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        choose_min_tokens(cores, [backend], make_batch(10))
    assert cores.num_cores == 8


def test_a_clock_that_does_not_advance_ends_the_measurement(
    clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "thread_time", lambda: 0.0)
    cores = SharedCores(8)
    choose_min_tokens(cores, [TimedBackend(cores, 1, clock)], make_batch(10))
    assert cores.min_tokens_for_two == 160  # one core seems to take no time


def test_nothing_is_measured_for_one_core(clock: VirtualClock) -> None:
    cores = SharedCores(1)
    backend = TimedBackend(cores, 40, clock)
    choose_min_tokens(cores, [backend], make_batch(10))
    assert not backend.launched
