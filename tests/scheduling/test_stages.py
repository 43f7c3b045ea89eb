from __future__ import annotations

from infinity_emb.scheduling.requests import PendingRequest
from infinity_emb.scheduling.stages import ComputedBatch, RequestStages
from tests.scheduling.pools import Requests, running_when_queued
from tests.support.scripted_backend import ScriptedBackend


class BatchNotes(RequestStages):
    """Keep the batches, as traces do."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[ComputedBatch] = []

    def add_batch(self, batch: ComputedBatch, queued_s: float) -> None:
        super().add_batch(batch, queued_s)
        self.batches.append(batch)


def test_overlapping_parts_of_a_stage_are_counted_once() -> None:
    stages = RequestStages()
    for stage, started_s, ended_s in (
        ("queue", 3.0, 5.0),
        ("tokenize", 1.0, 3.0),
        ("tokenize", 2.0, 4.0),
        ("tokenize", 2.5, 2.75),
        ("tokenize", 7.0, 8.0),
    ):
        stages.add(stage, started_s, ended_s)
    assert stages.measure() == {"tokenize": 4.0, "queue": 2.0}
    assert list(stages.measure()) == ["tokenize", "queue"]
    assert stages.reached_s == 8.0


def test_the_requests_of_one_batch_share_its_record() -> None:
    requests = Requests([1, 2], [3], [4])
    records = [BatchNotes(), BatchNotes()]
    for request, record in zip(requests.pending, records, strict=False):
        request.stages = record
    with running_when_queued(requests, ScriptedBackend()):
        requests.wait()
    for record in records:
        queue, batch, forward = record.intervals
        assert [each.stage for each in record.intervals] == ["queue", "batch", "forward"]
        assert queue.started_s <= queue.ended_s == batch.started_s == forward.started_s
        assert forward.ended_s <= batch.ended_s
    [shared] = {batch for record in records for batch in record.batches}
    assert (shared.num_items, shared.num_tokens) == (4, 12)


def test_a_request_has_no_record_unless_asked() -> None:
    assert PendingRequest(1, lambda _: None).stages is None
