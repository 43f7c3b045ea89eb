from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infinity_emb.errors import BackendFailed, DeviceOutOfMemory, InputTooLong
from infinity_emb.scheduling.recovery import ran_out_of_memory, split_batch, translate_failure


@given(st.lists(st.integers(), min_size=2))
def test_a_failed_batch_is_split_into_two_halves_that_are_not_empty(batch: list[int]) -> None:
    first, second = split_batch(batch)

    assert first + second == batch
    assert 0 <= len(second) - len(first) <= 1
    assert first


@pytest.mark.parametrize("failure", [MemoryError(), DeviceOutOfMemory("does not fit")])
def test_memory_errors_of_host_and_device_are_out_of_memory(failure: Exception) -> None:
    assert ran_out_of_memory(failure)
    assert not ran_out_of_memory(RuntimeError("out of memory"))


def test_an_error_of_this_package_is_not_translated() -> None:
    error = InputTooLong("is too long")
    assert translate_failure(error) is error


def test_an_exception_of_the_backend_becomes_the_cause_of_a_backend_failure() -> None:
    failure = KeyError("weight")
    error = translate_failure(failure)
    assert isinstance(error, BackendFailed)
    assert str(error) == "could not be computed: KeyError: 'weight'"
    assert error.__cause__ is failure
