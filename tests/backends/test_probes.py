from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from infinity_emb.backends import probes
from infinity_emb.backends.probes import (
    PARITY_TEXTS,
    as_inputs,
    fill_batch,
    measure_calls_per_s,
    measure_rates,
    mixed_texts,
    passages,
    short_texts,
)
from infinity_emb.items import Encoded, Pair


def test_two_parity_texts_are_near_in_length_and_one_is_much_shorter() -> None:
    short, longer, near = sorted(map(len, PARITY_TEXTS))
    assert short * 3 < longer < near < longer * 1.1


def test_mixed_texts_take_turns_in_length() -> None:
    assert [len(text.split()) for text in mixed_texts()] == [12, 100, 25, 200, 50]


def test_short_texts_and_passages_are_of_many_lengths() -> None:
    short, longer = ([len(text) for text in texts] for texts in (short_texts(), passages()))
    assert np.median(short) * 3 < np.median(longer)
    assert len(set(short)) > 20
    assert len(set(longer)) == len(longer)


def test_a_reranker_gets_each_text_paired_with_a_query() -> None:
    assert as_inputs(["a", "b"], are_pairs=False) == ["a", "b"]
    assert as_inputs(["a", "b"], are_pairs=True, query="q") == [Pair("q", "a"), Pair("q", "b")]


def test_a_batch_repeats_its_samples_until_it_is_full() -> None:
    samples = [Encoded(np.ones(length, dtype=np.int32)) for length in (3, 5)]
    assert [item.num_tokens for item in fill_batch(samples, 10)] == [3, 5, 3]
    assert fill_batch(samples, 0) == []


class Scripted:
    """Measurements with the given results; `turns` collects who was measured."""

    def __init__(self, **rates: list[float]) -> None:
        self.turns = ""
        self._rates: dict[str, Iterator[float]] = {name: iter(values) for name, values in rates.items()}

    def candidates(self) -> dict[str, Any]:
        def measure(name: str) -> float:
            self.turns += name
            return next(self._rates[name])

        return {name: lambda name=name: measure(name) for name in self._rates}


def test_the_best_turn_counts() -> None:
    scripted = Scripted(a=[1, 9, 2], b=[5, 5, 6])
    assert measure_rates(scripted.candidates(), max_rounds=3) == {"a": 9, "b": 6}


def test_candidates_take_turns_and_none_is_always_first() -> None:
    scripted = Scripted(a=[1.0] * 3, b=[1.0] * 3)
    measure_rates(scripted.candidates(), max_rounds=3)
    assert scripted.turns == "abbaab"


@pytest.mark.parametrize(("min_rounds", "num_rounds"), [(1, 2), (4, 5)])
def test_no_round_starts_after_the_deadline_once_there_were_enough(
    min_rounds: int, num_rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = iter([1.0, 3.0, 4.0, 5.0])
    monkeypatch.setattr(probes, "time", SimpleNamespace(monotonic=lambda: next(now_s)))
    scripted = Scripted(a=[1.0] * 9)
    measure_rates(scripted.candidates(), max_rounds=9, min_rounds=min_rounds, deadline_s=2)
    assert len(scripted.turns) == num_rounds


def test_calls_are_counted_for_a_duration_by_the_given_clock() -> None:
    clock = SimpleNamespace(now_s=0.0)

    def call() -> None:
        clock.now_s += 0.25

    assert measure_calls_per_s(call, min_duration_s=1.0, read_clock=lambda: clock.now_s) == 4
    assert clock.now_s == 1


def test_a_clock_that_does_not_advance_ends_the_measurement() -> None:
    calls: list[None] = []
    assert measure_calls_per_s(lambda: calls.append(None), min_duration_s=1.0, read_clock=lambda: 0.0) > 1e6
    assert len(calls) == 100
