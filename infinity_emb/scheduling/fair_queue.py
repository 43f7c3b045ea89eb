"""Start-time fair queueing: clients and lanes share a device by the tokens that they compute.

Each item gets a start tag when it is queued: the tokens that its flow (one client in one lane) has queued
before, divided by the weight of its lane, counted from the current virtual time. Items leave in the order of
their tags, and the virtual time is the tag of the last item that left. Three properties follow, each checked
by a test:

1. Items of one flow leave in the order in which they were queued.
2. Two flows with queued items get tokens in the ratio of their weights, within one item each, no matter how
   many items either has. So a query leaves before thousands of passages that were queued earlier.
3. A tag never changes and the virtual time never decreases, so no flow starves.

Source: Goyal, Vin and Cheng 1996, "Start-time fair queuing", https://doi.org/10.1145/248157.248171
"""

from __future__ import annotations

import heapq
import itertools
import operator
from collections.abc import Iterable
from typing import Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from infinity_emb.types import Lane

# A token of an interactive request counts for an eighth of a bulk request's token.
LANE_WEIGHTS: dict[Lane, float] = {"interactive": 8.0, "bulk": 1.0}
# Flows that are remembered before those without queued items are pruned.
_MIN_FLOWS_TO_PRUNE = 256

_get_flow = operator.attrgetter("flow")


class Flow(NamedTuple):
    """The requests of one client in one lane, which share the device with other flows."""

    client: str = ""
    lane: Lane = "interactive"


class FlowItem(Protocol):
    """Properties of an item that the order depends on."""

    @property
    def flow(self) -> Flow: ...

    @property
    def num_tokens(self) -> int: ...


ItemT = TypeVar("ItemT", bound=FlowItem)


# An item with its sort key: the start tag, and a serial number that breaks ties.
Tagged: TypeAlias = tuple[float, int, ItemT]


class FairQueue(Generic[ItemT]):
    """Items in the order in which they are to be computed, and their tokens. Not thread-safe."""

    def __init__(self) -> None:
        self._heap: list[Tagged[ItemT]] = []
        self._num_tokens: dict[Lane, int] = dict.fromkeys(LANE_WEIGHTS, 0)
        self._num_flow_tokens: dict[Flow, int] = {}
        self._num_added_tokens: dict[Lane, int] = dict.fromkeys(LANE_WEIGHTS, 0)
        self._finish_tags: dict[Flow, float] = {}  # start tag of a flow's next item, if not in the past
        self._virtual_time = 0.0
        self._num_added = 0
        self._num_flows_to_prune = _MIN_FLOWS_TO_PRUNE

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def num_tokens(self) -> int:
        """Tokens of all queued items, including cancelled ones."""
        return sum(self._num_tokens.values())

    @property
    def num_flows(self) -> int:
        """Flows that are remembered."""
        return len(self._finish_tags)

    def num_lane_tokens(self, lane: Lane) -> int:
        """Return the tokens of the queued items of one lane."""
        return self._num_tokens[lane]

    def num_flow_tokens(self, flow: Flow) -> int:
        """Return the tokens of the queued items of one flow."""
        return self._num_flow_tokens.get(flow, 0)

    def num_taken_tokens(self, lane: Lane) -> int:
        """Return the tokens of the items of one lane that have left."""
        return self._num_added_tokens[lane] - self._num_tokens[lane]

    def add(self, items: Iterable[ItemT]) -> None:
        """Append items to their flows."""
        if not self._heap:
            self._reset_flows()
        for flow, flow_items in itertools.groupby(items, _get_flow):
            weight = LANE_WEIGHTS[flow.lane]
            tag = max(self._virtual_time, self._finish_tags.get(flow, 0.0))
            num_flow_tokens = 0
            for number, item in enumerate(flow_items, self._num_added):
                heapq.heappush(self._heap, (tag, number, item))
                num_tokens = item.num_tokens
                tag += num_tokens / weight
                num_flow_tokens += num_tokens
            self._num_added = number + 1
            self._finish_tags[flow] = tag
            self._num_added_tokens[flow.lane] += num_flow_tokens
            self._count(flow, num_flow_tokens)
        if len(self._finish_tags) > self._num_flows_to_prune:
            self._prune()

    def pop(self) -> Tagged[ItemT]:
        """Remove and return the first item. Raises IndexError when the queue is empty."""
        tagged = heapq.heappop(self._heap)
        item = tagged[-1]
        self._count(item.flow, -item.num_tokens)
        return tagged

    def put_back(self, tagged_items: Iterable[Tagged[ItemT]]) -> None:
        """Return popped items to their places."""
        for tagged in tagged_items:
            item = tagged[-1]
            self._count(item.flow, item.num_tokens)
            heapq.heappush(self._heap, tagged)

    def advance(self, start_tag: float) -> None:
        """Move the virtual time to the tag of an item that left."""
        if start_tag > self._virtual_time:
            self._virtual_time = start_tag

    def take_all(self) -> list[ItemT]:
        """Remove and return all items, in order."""
        items = [item for _, _, item in sorted(self._heap)]
        self._heap.clear()
        self._num_tokens = dict.fromkeys(LANE_WEIGHTS, 0)
        self._num_flow_tokens.clear()
        return items

    def _count(self, flow: Flow, num_tokens: int) -> None:
        self._num_tokens[flow.lane] += num_tokens
        self._num_flow_tokens[flow] = self._num_flow_tokens.get(flow, 0) + num_tokens

    def _reset_flows(self) -> None:
        """Restart the virtual time: in an empty queue all flows are equal."""
        self._finish_tags.clear()
        self._num_flow_tokens.clear()
        self._virtual_time = 0.0

    def _prune(self) -> None:
        """Drop flows whose finish tag is in the past; there may be as many clients as addresses."""
        self._finish_tags = {flow: tag for flow, tag in self._finish_tags.items() if tag > self._virtual_time}
        self._num_flow_tokens = {flow: number for flow, number in self._num_flow_tokens.items() if number}
        self._num_flows_to_prune = max(_MIN_FLOWS_TO_PRUNE, 2 * len(self._finish_tags))
