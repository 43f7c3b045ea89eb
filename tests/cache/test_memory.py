from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from infinity_emb.cache.memory import MemoryTier, size_bytes_of
from tests.cache.answers import entry_of, key_of

ONE = size_bytes_of(entry_of(1))


def numbers_in(memory: MemoryTier, numbers: range) -> list[int]:
    found = memory.find([key_of(number) for number in numbers])
    return [number for number, entry in zip(numbers, found, strict=True) if entry is not None]


def test_what_nobody_asked_for_longest_leaves_first() -> None:
    memory = MemoryTier(3 * ONE)
    memory.keep({key_of(number): entry_of(number) for number in range(3)})
    memory.find([key_of(0)])
    memory.keep({key_of(3): entry_of(3)})
    assert numbers_in(memory, range(4)) == [0, 2, 3]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 300))))
def test_it_never_takes_more_than_it_may_and_counts_what_it_takes(kept: list[tuple[int, int]]) -> None:
    memory = MemoryTier(4 * ONE)
    last = {}
    for number, dimension in kept:
        entry = entry_of(number, dimension)
        memory.keep({key_of(number): entry})
        if size_bytes_of(entry) <= 4 * ONE:
            last[number] = entry
        assert memory.size_bytes <= 4 * ONE
    found = [(number, memory.find([key_of(number)])[0]) for number in range(10)]
    assert memory.size_bytes == sum(size_bytes_of(entry) for _, entry in found if entry is not None)
    assert all(entry is last[number] for number, entry in found if entry is not None)


def test_without_room_nothing_is_kept() -> None:
    memory = MemoryTier(0)
    memory.keep({key_of(1): entry_of(1)})
    assert (memory.size_bytes, memory.find([key_of(1)])) == (0, [None])
