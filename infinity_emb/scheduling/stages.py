"""Record when each stage of one request began and ended, for `Server-Timing`, traces and `profile`.

A request has a record only if one of them is on; all requests count in the histograms.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

# In order of time; the stages of a request of several chunks overlap.
Stage: TypeAlias = Literal["parse", "cache", "tokenize", "queue", "batch", "forward", "wake", "encode"]


class Interval(NamedTuple):
    """A part of a request in one stage; times by `time.monotonic`."""

    stage: Stage
    started_s: float
    ended_s: float


@dataclass(frozen=True, eq=False, kw_only=True)
class ComputedBatch:
    """One successful batch; times by `time.monotonic`.

    computed_s: when its outputs arrived from the device; stored_s: when the requests had them.
    requests: records of requests with items in the batch; a trace links them.
    """

    launched_s: float
    computed_s: float
    stored_s: float
    num_items: int
    num_tokens: int
    requests: list[RequestStages] = field(default_factory=list)


class RequestStages:
    """The record of one request. Starts when created; any thread may add to it.

    parse: from the request's head to its validated body, receiving it included.
    cache: look the inputs up in the cache, or wait for another request that computes them.
    tokenize: encode a chunk of the inputs, waiting for a thread included.
    queue: from the first input of a request in a batch until the batch was launched.
    batch: from the launch to stored outputs; forward: the part of it until the device had finished.
    wake: until the event loop ran the request again.
    encode: shape the vectors and write the body of the response.
    """

    def __init__(self) -> None:
        self.started_s = time.monotonic()
        self.intervals: list[Interval] = []

    @property
    def reached_s(self) -> float:
        """When the latest stage ended."""
        return max((interval.ended_s for interval in self.intervals), default=self.started_s)

    def add(self, stage: Stage, started_s: float, ended_s: float | None = None) -> None:
        """Add a part of the request. It ends now unless `ended_s` is given."""
        self.intervals.append(Interval(stage, started_s, time.monotonic() if ended_s is None else ended_s))

    def add_batch(self, batch: ComputedBatch, queued_s: float) -> None:
        """Add the request's part of a batch. queued_s: when its first input in the batch was queued."""
        self.add("queue", queued_s, batch.launched_s)
        self.add("batch", batch.launched_s, batch.stored_s)
        self.add("forward", batch.launched_s, batch.computed_s)

    def measure(self) -> dict[Stage, float]:
        """Return how many seconds any part of the request spent in each stage, in order of their start."""
        seconds: dict[Stage, float] = {}
        reached: dict[Stage, float] = {}
        for stage, started_s, ended_s in sorted(self.intervals, key=lambda each: each.started_s):
            counted_s = max(started_s, reached.get(stage, started_s))
            seconds[stage] = seconds.get(stage, 0.0) + max(0.0, ended_s - counted_s)
            reached[stage] = max(ended_s, counted_s)
        return seconds
