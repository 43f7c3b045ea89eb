"""Cores are divided by how many batches compute, and a small batch does not wake them all."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from infinity_emb.backends.torch.cpu_threads import MIN_TOKENS_PER_CORE, SharedCores, one_core

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
