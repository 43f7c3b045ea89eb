"""Measuring, on fake models: what they compute is how long their inputs are."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from infinity_emb.backends import auto_measure, fake
from infinity_emb.backends.auto_choice import Agreement
from infinity_emb.backends.auto_measure import Contender, agreement_of, speed_ratio, takes_texts
from infinity_emb.backends.base import Encoded, LoadedModel, Pair, SparseRow
from infinity_emb.config import EngineArgs
from infinity_emb.primitives import ModelKind


@pytest.fixture(autouse=True)
def _short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_measure, "_MIN_TURN_S", 0)


def fake_model(query: str = "", **options: Any) -> LoadedModel:
    return fake.load_model(EngineArgs(model_name_or_path=f"debug?{query}", engine="debugengine", **options))  # type: ignore[arg-type]


class Scripted:
    """A contender whose turns are written down, and the order in which they came."""

    def __init__(self, name: str, rates: Sequence[float], turns: list[str]) -> None:
        self._name, self._rates, self._turns = name, iter(rates), turns

    def tokens_per_s(self) -> float:
        self._turns.append(self._name)
        return next(self._rates)


def ratio_of(challenger: Sequence[float], best: Sequence[float], now_s: Iterator[float]) -> tuple[float, str]:
    turns: list[str] = []
    contenders: list[Any] = [Scripted("c", challenger, turns), Scripted("b", best, turns)]
    return speed_ratio(*contenders, now_s=lambda: next(now_s)), "".join(turns)


def test_a_slow_moment_and_the_first_round_decide_nothing() -> None:
    ticks = iter([0.0, 1, 2, 3, 99])  # asked from the third round on
    ratio, _ = ratio_of([9, 20, 2, 20, 20, 20], [1, 10, 10, 10, 10, 10], ticks)
    assert ratio == 2


def test_contenders_take_turns_and_none_is_always_first() -> None:
    assert ratio_of([1] * 3, [1] * 3, iter([0.0, 99, 99]))[1] == "bccbbc"


def test_rounds_end_at_the_deadline_or_at_a_number() -> None:
    always = iter(lambda: 0.0, None)
    _, turns = ratio_of([1] * 99, [1] * 99, always)
    assert len(turns) == 2 * (1 + auto_measure._MAX_ROUNDS)


class Watching:
    """A backend that notes its threads, and how many batches are under way at once."""

    shares_device = False

    def __init__(self, num_in_flight: int, all_launched: threading.Barrier) -> None:
        self.num_in_flight = num_in_flight
        self.most_under_way = self.under_way = 0
        self.threads: set[int] = set()
        self._all_launched = all_launched
        self._is_first = True

    def prepare_thread(self) -> None:
        self.threads.add(threading.get_ident())

    def free_memory(self) -> None: ...

    def launch(self, batch: Sequence[Encoded], *, full_precision: bool = False) -> Watching:
        if self._is_first:
            self._all_launched.wait()
        self._is_first = False
        assert {threading.get_ident()} == self.threads, "each replica has one thread, which was prepared"
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        return self

    def collect(self) -> dict[Any, Any]:
        self.under_way -= 1
        return {}


def test_replicas_compute_side_by_side_with_as_many_batches_under_way_as_they_take() -> None:
    """The barrier opens when both have launched: one after the other would wait for ever."""
    barrier = threading.Barrier(2, timeout=30)
    replicas = [Watching(2, barrier), Watching(2, barrier)]
    contender = Contender(replace(fake_model(), replicas=replicas))  # type: ignore[arg-type]
    assert contender.tokens_per_s() > 0
    contender.close()
    assert [each.most_under_way for each in replicas] == [2, 2]
    assert [each.under_way for each in replicas] == [0, 0]


def test_the_faster_of_two_models_is_found() -> None:
    slow, quick = Contender(fake_model("delay_s=0.03")), Contender(fake_model("delay_s=0.003"))
    now_s = iter([0.0, *[99.0] * 9])
    assert speed_ratio(quick, slow, now_s=lambda: next(now_s)) > 1.5
    slow.close()
    quick.close()


@pytest.mark.parametrize("kind", ["embedder", "reranker", "classifier", "sparse", "multivector"])
def test_every_output_is_answered_in_order_however_many_batches_there_are(kind: str) -> None:
    whole = Contender(fake_model(f"kind={kind}"))
    cut = Contender(fake_model(f"kind={kind}", max_batch_tokens=100))
    expected, found = whole.answers(), cut.answers()
    whole.close()
    cut.close()
    info = whole.model.info
    assert len(found) == max(1, len(info.outputs))
    num_inputs = sum(map(len, auto_measure._workloads(info.kind)))
    assert {len(column) for column in found} == {num_inputs}
    assert agreement_of(found, expected, info.kind).difference == 0
    assert len(set(map(repr, found[0]))) > 5, "answers that are all alike prove nothing"


def test_the_worst_answer_counts_and_scores_have_no_cosine() -> None:
    expected = [[np.array([1, 0], np.float32), np.array([0, 2], np.float32)]]
    answers = [[np.array([1, 0], np.float32), np.array([0, 1], np.float32)]]
    assert agreement_of(answers, expected, ModelKind.embedder) == Agreement(1.0, 0.5)
    assert agreement_of(answers, expected, ModelKind.classifier) == Agreement(None, 0.5)


def test_sparse_rows_agree_whatever_their_entries_are() -> None:
    def row(*entries: int) -> SparseRow:
        return SparseRow(np.array(entries, np.int32), np.ones(len(entries), np.float32))

    assert agreement_of([[row(2, 9)]], [[row(2, 9)]], ModelKind.sparse).difference == 0
    assert agreement_of([[row(2)]], [[row(2, 9)]], ModelKind.sparse) == pytest.approx((0.5**0.5, 1.0))
    assert agreement_of([[row()]], [[row()]], ModelKind.sparse) == (1.0, 0.0)


def test_short_texts_and_passages_are_measured_and_pairs_where_the_model_takes_pairs() -> None:
    short, passages = ([len(text) for text in load] for load in auto_measure._workloads(ModelKind.embedder))  # type: ignore[arg-type]
    assert np.median(short) * 3 < np.median(passages)
    assert len(set(short)) > 20, "of many lengths, which padded engines have to put up with"
    assert len(set(passages)) == len(passages)
    pairs = [each for load in auto_measure._workloads(ModelKind.reranker) for each in load]
    assert all(isinstance(each, Pair) for each in pairs)


def test_a_model_without_texts_cannot_be_measured() -> None:
    info = fake_model().info
    assert takes_texts(info)
    assert not takes_texts(replace(info, capabilities=("image_embed", "audio_embed")))
