"""Hold outputs in a bounded amount of memory."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infinity_emb.cache.memory_tier import MemoryTier, estimate_size_bytes
from infinity_emb.errors import StartupError
from tests.support.outputs import entry_of, key_of

ONE = estimate_size_bytes(entry_of(1))


def numbers_in(memory: MemoryTier, numbers: range) -> list[int]:
    found = memory.find([key_of(number) for number in numbers])
    return [number for number in numbers if key_of(number) in found]


def test_the_least_recently_used_output_is_evicted() -> None:
    memory = MemoryTier(3 * ONE)
    memory.keep({key_of(number): entry_of(number) for number in range(3)})
    memory.find([key_of(0)])
    memory.keep({key_of(3): entry_of(3)})
    assert numbers_in(memory, range(4)) == [0, 2, 3]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 300))))
def test_the_size_is_bounded_and_counted(kept: list[tuple[int, int]]) -> None:
    memory = MemoryTier(4 * ONE)
    last = {}
    for number, dimension in kept:
        entry = entry_of(number, dimension)
        memory.keep({key_of(number): entry})
        if estimate_size_bytes(entry) <= 4 * ONE:
            last[key_of(number)] = entry
        assert memory.size_bytes <= 4 * ONE
    found = memory.find([key_of(number) for number in range(10)])
    assert memory.size_bytes == sum(map(estimate_size_bytes, found.values()))
    assert all(entry is last[key] for key, entry in found.items())


def test_a_missing_library_is_reported_with_the_command_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "cachetools", None)
    with pytest.raises(StartupError, match=r"pip install 'infinity-emb\[cache\]'"):
        MemoryTier(1)
