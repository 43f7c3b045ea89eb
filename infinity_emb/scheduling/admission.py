"""Admission of requests to one model: limits on the queued inputs and tokens, and on the expected wait.

A request is admitted or refused as a whole, before any of its inputs is tokenized. Pure bookkeeping: no
clock, no threads; callables report what the devices have computed and what is queued. Three rules keep one
client from closing the queue to others, each checked by a property-based test:

1. Each lane has its own limits, so no interactive request is refused because of bulk work.
2. A single client may fill a lane up to its limit. A reserve beyond the limit is for clients that hold
   less than others: each may hold a number in proportion to the free part, so that part is never used up.
3. The expected wait is that of the client's own share of the devices.

Source: Choudhury and Hahne 1998, "Dynamic queue length thresholds for shared-memory packet switches",
https://doi.org/10.1109/90.664262
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from infinity_emb.errors import BadInput, Overloaded
from infinity_emb.scheduling.fair_queue import LANE_WEIGHTS, Flow
from infinity_emb.scheduling.throughput import Progress, Throughput
from infinity_emb.types import Lane

MAX_RETRY_AFTER_S = 60
# Size of the reserve: a fraction of the limit, but at least MIN_RESERVE inputs.
RESERVE_FRACTION = 1 / 8
MIN_RESERVE = 64
# Refused flows that are remembered, so that their next request is checked before its body is read.
_MAX_REFUSED_FLOWS = 1024
_DEFAULT_FLOW = Flow()


class Backlog(NamedTuple):
    """The tokens that are queued.

    num_flow_tokens: queued tokens of the flow whose request is being admitted.
    num_taken_tokens, num_taken_bulk_tokens: tokens that have left the queue since it was created.
    """

    num_tokens: int
    num_interactive_tokens: int
    num_flow_tokens: int = 0
    num_taken_tokens: int = 0
    num_taken_bulk_tokens: int = 0

    def num_lane_tokens(self, lane: Lane) -> int:
        """Return the queued tokens of one lane."""
        interactive = self.num_interactive_tokens
        return interactive if lane == "interactive" else self.num_tokens - interactive


@dataclass(slots=True, kw_only=True)
class Admission:
    """Admit requests to one model, and count the inputs of those that have not ended.

    name: of the model, for messages.
    max_items, max_tokens: limits of what is queued in each lane.
    max_wait_s: a request that would wait longer is refused; infinity for no limit.
    num_items: admitted inputs per lane.
    """

    name: str
    max_items: int
    max_tokens: int
    max_wait_s: float
    progress: Callable[[], Progress]
    backlog: Callable[[Flow], Backlog]
    num_items: dict[Lane, int] = field(default_factory=lambda: dict.fromkeys(LANE_WEIGHTS, 0))
    num_refused: int = 0
    _num_held: dict[Flow, int] = field(default_factory=dict)  # admitted inputs of flows that have any
    _num_flows: dict[Lane, int] = field(default_factory=lambda: dict.fromkeys(LANE_WEIGHTS, 0))
    _refused: set[Flow] = field(default_factory=set)  # and not seen to have room since
    _throughput: Throughput = field(default_factory=Throughput)

    @property
    def num_accepted_items(self) -> int:
        """Inputs of requests that were admitted and have not ended."""
        return sum(self.num_items.values())

    @property
    def has_refused(self) -> bool:
        """True if a request was refused and its flow has not been seen to have room since."""
        return bool(self._refused)

    @property
    def num_reserved(self) -> int:
        """Inputs that each lane can hold on top of its limit, for clients that hold less than others."""
        return max(MIN_RESERVE, int(RESERVE_FRACTION * self.max_items))

    def admit(self, num_items: int, flow: Flow, *, num_total: int | None = None) -> None:
        """Count the inputs of a request as queued.

        num_items: 0 for what a request that was admitted before needs computed; it is never refused.
        num_total: inputs of the whole request, where some of them were admitted before.
        Raises Overloaded, and BadInput for more inputs than the queue can ever hold.
        """
        num_total = num_items if num_total is None else num_total
        if num_total > self.max_items:
            raise BadInput(
                f"the request has {num_total} inputs, the queue holds at most {self.max_items};"
                " split the request"
            )
        if num_items:
            self._check(num_items, flow)
        self._count(num_items, flow)

    def release(self, num_items: int, flow: Flow) -> None:
        """Undo `admit` for inputs that have ended."""
        self._count(-num_items, flow)

    def check_capacity(self, flow: Flow) -> None:
        """Raise Overloaded, and count a refusal, if any request of the flow would be refused now.

        Costs nothing unless a request of the flow was refused and there has been no capacity since.
        """
        if flow in self._refused:
            self._check(1, flow)
            self._refused.discard(flow)

    def is_full(self, flow: Flow = _DEFAULT_FLOW) -> bool:
        """Tell whether any request of the flow would be refused now."""
        backlog = self._measure(flow)
        return self._refusal_reason(1, flow, backlog, self._expected_wait_s(1, flow, backlog)) is not None

    def estimated_wait_s(self, lane: Lane) -> float:
        """Estimate how long everything queued in a lane will take; 0 while the throughput is unknown.

        Bulk work shares the devices with interactive requests that arrive later; if few arrive, these use
        less than their share.
        """
        return self._lane_wait_s(lane, self._measure(Flow(lane=lane)))

    def _lane_wait_s(self, lane: Lane, backlog: Backlog) -> float:
        items, tokens = self.num_accepted_items, backlog.num_tokens
        if lane == "interactive":
            share = 1 + LANE_WEIGHTS["bulk"] / LANE_WEIGHTS["interactive"]
            items = min(items, math.ceil(share * self.num_items["interactive"]))
            tokens = min(tokens, math.ceil(share * backlog.num_interactive_tokens))
            return self._throughput.estimate_s(items, tokens)
        bulk_s = self._throughput.estimate_s(self.num_items["bulk"], backlog.num_lane_tokens("bulk"))
        return max(self._throughput.estimate_s(items, tokens), bulk_s / self._throughput.bulk_share)

    def _measure(self, flow: Flow) -> Backlog:
        backlog = self.backlog(flow)
        self._throughput.update(self.progress(), backlog.num_taken_tokens, backlog.num_taken_bulk_tokens)
        return backlog

    def _expected_wait_s(self, num_items: int, flow: Flow, backlog: Backlog) -> float:
        """Return how long new inputs of a flow will wait: until the lane is empty, or less for a small flow.

        By the time they are computed, each other flow has had as many inputs computed as this one.
        """
        lane_wait_s, num_lane_items = self._lane_wait_s(flow.lane, backlog), self.num_items[flow.lane]
        if not num_lane_items:
            return lane_wait_s
        num_held = self._num_held.get(flow, 0)
        num_flows = self._num_flows[flow.lane] + (not num_held)
        return lane_wait_s * min(1.0, (num_held + num_items) * num_flows / num_lane_items)

    def _check(self, num_items: int, flow: Flow) -> None:
        """Raise Overloaded, and count a refusal, if there is no room."""
        backlog = self._measure(flow)
        wait_s = self._expected_wait_s(num_items, flow, backlog)
        reason = self._refusal_reason(num_items, flow, backlog, wait_s)
        if reason is None:
            return
        self.num_refused += 1
        if len(self._refused) >= _MAX_REFUSED_FLOWS:
            self._refused.clear()
        self._refused.add(flow)
        # By then about half of what is queued has been computed.
        raise Overloaded(
            f"model {self.name} is currently overloaded: {reason}; try again later",
            retry_after_s=max(1, min(MAX_RETRY_AFTER_S, math.ceil(wait_s / 2))),
        )

    def _refusal_reason(self, num_items: int, flow: Flow, backlog: Backlog, wait_s: float) -> str | None:
        num_lane_items, num_held = self.num_items[flow.lane], self._num_held.get(flow, 0)
        num_reserved = self.num_reserved
        num_left = self.max_items + num_reserved - num_lane_items - num_items
        if (num_held + num_items) * num_reserved > self.max_items * num_left:
            return f"queue full ({num_lane_items} of {self.max_items} inputs)"
        num_tokens = backlog.num_lane_tokens(flow.lane)
        # Requests are admitted before their tokens are known, so these may be many more than the limit.
        share = self.max_tokens / (self._num_flows[flow.lane] + 1)
        if num_tokens >= self.max_tokens and backlog.num_flow_tokens >= share:
            return f"queue full ({num_tokens} of {self.max_tokens} tokens)"
        if wait_s > self.max_wait_s:
            return f"expected wait of {wait_s:.0f} s exceeds the limit of {self.max_wait_s:g} s"
        return None

    def _count(self, num_items: int, flow: Flow) -> None:
        before = self._num_held.get(flow, 0)
        self.num_items[flow.lane] += num_items
        self._num_held[flow] = before + num_items
        if not self._num_held[flow]:
            del self._num_held[flow]
        self._num_flows[flow.lane] += bool(before + num_items) - bool(before)
