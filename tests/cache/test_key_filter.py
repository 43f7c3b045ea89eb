from __future__ import annotations

from infinity_emb.cache.key_filter import KeyFilter
from tests.cache.answers import key_of


def test_keys_that_were_added_are_found_and_few_others() -> None:
    known = KeyFilter(0)
    keys, others = [key_of(number) for number in range(50_000)], [key_of(-1 - n) for n in range(10_000)]
    known.add(keys[:20_000])
    known.add(keys[20_000:])
    assert all(known.may_hold(keys))
    assert sum(known.may_hold(others)) < len(others) // 40


def test_it_is_crowded_when_it_holds_twice_what_it_was_made_for() -> None:
    known = KeyFilter(50_000)
    known.add([key_of(number) for number in range(100_000)])
    assert not known.is_crowded
    known.add([key_of(-1)])
    assert known.is_crowded


def test_a_key_that_occurs_twice_in_one_call_is_found() -> None:
    known = KeyFilter(0)
    known.add([key_of(1), key_of(1)])
    assert known.may_hold([key_of(2), key_of(1)]) == [False, True]
