"""Measure and compute with fake models."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from infinity_emb.backends import fake
from infinity_emb.backends.accuracy import compare
from infinity_emb.backends.auto.candidate import Candidate, can_measure, compare_speed
from infinity_emb.backends.base import LoadedModel
from infinity_emb.backends.probes import passages, short_texts
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.items import Encoded


def fake_model(query: str = "", **options: Any) -> LoadedModel:
    return fake.load_model(EngineArgs(model_name_or_path=f"debug?{query}", engine="debugengine", **options))


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

    def result(self) -> dict[Any, Any]:
        self.under_way -= 1
        return {}


def test_replicas_compute_side_by_side_with_as_many_batches_under_way_as_they_take() -> None:
    """The barrier opens when both have launched: one after the other would wait for ever."""
    barrier = threading.Barrier(2, timeout=30)
    replicas = [Watching(2, barrier), Watching(2, barrier)]
    candidate = Candidate(replace(fake_model(), replicas=replicas))
    assert candidate.measure_tokens_per_s(0) > 0
    candidate.close()
    assert [each.most_under_way for each in replicas] == [2, 2]
    assert [each.under_way for each in replicas] == [0, 0]


def test_the_faster_of_two_models_is_found() -> None:
    slow, quick = Candidate(fake_model("delay_s=0.03")), Candidate(fake_model("delay_s=0.003"))
    assert compare_speed(quick, slow, max_duration_s=0, min_turn_s=0) > 1.5
    slow.close()
    quick.close()


@pytest.mark.parametrize("kind", ["embedder", "reranker", "classifier", "sparse", "multivector"])
def test_every_output_is_answered_in_order_however_many_batches_there_are(kind: str) -> None:
    whole = Candidate(fake_model(f"kind={kind}"))
    cut = Candidate(fake_model(f"kind={kind}", max_batch_tokens=100))
    expected, found = whole.compute_outputs(), cut.compute_outputs()
    whole.close()
    cut.close()
    info = whole.model.info
    num_inputs = len(short_texts()) + len(passages())
    assert len(found) == max(1, len(info.outputs)) * num_inputs
    assert compare(found, expected).max_difference == 0
    assert len(set(map(repr, found[:num_inputs]))) > 5, "answers that are all alike prove nothing"


def test_a_model_without_texts_cannot_be_measured() -> None:
    info = fake_model().info
    assert can_measure(info)
    assert not can_measure(replace(info, capabilities=("image_embed", "audio_embed")))
