"""Who goes first among those who wait: clients and lanes share a device by the tokens that they compute.

Start-time fair queueing. Each item gets a start tag when it comes: the tokens that its flow (one client in
one lane) has asked for, over the flow's weight, counted from the present virtual time. Items leave in the
order of their tags, and the virtual time is the tag of the last that left. Three things follow, each held by
a test:

1. Where one flow waits alone, its items leave in the order in which they came.
2. Flows that both wait get tokens in the ratio of their weights, but for one item of each, however many
   items either has. So a query leaves before the thousands of passages that came before it.
3. A tag never changes and the virtual time never goes back, so that no flow starves.

Knows nothing of clocks, threads or batches.
Source: Goyal, Vin and Cheng 1996, "Start-time fair queuing", https://doi.org/10.1145/248157.248171
"""

from __future__ import annotations

import heapq
import itertools
import operator
from collections.abc import Iterable
from typing import Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from infinity_emb.primitives import Lane

# An interactive request's tokens count an eighth of a bulk request's.
LANE_WEIGHTS: dict[Lane, float] = {"interactive": 8.0, "bulk": 1.0}
_flow_of = operator.attrgetter("flow")
# Flows that are remembered before those that are owed nothing are looked for.
_MIN_FLOWS_TO_PRUNE = 256


class Flow(NamedTuple):
    """Whose items these are, and how much they hurry."""

    client: str = ""
    lane: Lane = "interactive"


class Queued(Protocol):
    """What the order depends on."""

    @property
    def flow(self) -> Flow: ...

    @property
    def num_tokens(self) -> int: ...


ItemT = TypeVar("ItemT", bound=Queued)


# An item in its place: start tag, when it came (which tells equal tags apart), and the item itself.
Entry: TypeAlias = tuple[float, int, ItemT]


class FairQueue(Generic[ItemT]):
    """Items in the order in which they are to leave. Not thread-safe by itself."""

    def __init__(self) -> None:
        self._entries: list[Entry[ItemT]] = []  # a heap
        self._finish_tags: dict[Flow, float] = {}  # where a flow's next item starts, unless it is in the past
        self._virtual_time = 0.0
        self._num_added = 0
        self._num_flows_to_prune = _MIN_FLOWS_TO_PRUNE

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, items: Iterable[ItemT]) -> None:
        """Put items behind what their flows have asked for."""
        if not self._entries:
            self._forget_flows()  # nobody waits, so nobody is owed anything
        for flow, of_flow in itertools.groupby(items, _flow_of):
            weight = LANE_WEIGHTS[flow.lane]
            tag = max(self._virtual_time, self._finish_tags.get(flow, 0.0))
            for item in of_flow:
                heapq.heappush(self._entries, (tag, self._num_added, item))
                tag += item.num_tokens / weight
                self._num_added += 1
            self._finish_tags[flow] = tag
        if len(self._finish_tags) > self._num_flows_to_prune:
            self._prune()

    def pop(self) -> Entry[ItemT]:
        """Take out the first. Raises IndexError where nothing waits."""
        return heapq.heappop(self._entries)

    def put_back(self, entries: Iterable[Entry[ItemT]]) -> None:
        """Return what was popped and does not leave yet, each to its place."""
        for entry in entries:
            heapq.heappush(self._entries, entry)

    def advance(self, start_tag: float) -> None:
        """An item with that tag has left."""
        self._virtual_time = max(self._virtual_time, start_tag)

    def pop_all(self) -> list[ItemT]:
        """Take out everything, in order."""
        items = [item for _, _, item in sorted(self._entries)]
        self._entries.clear()
        return items

    def _forget_flows(self) -> None:
        self._finish_tags.clear()
        self._virtual_time = 0.0

    def _prune(self) -> None:
        """Forget flows that start anew in any case: there may be as many clients as there are addresses."""
        self._finish_tags = {flow: tag for flow, tag in self._finish_tags.items() if tag > self._virtual_time}
        self._num_flows_to_prune = max(_MIN_FLOWS_TO_PRUNE, 2 * len(self._finish_tags))
