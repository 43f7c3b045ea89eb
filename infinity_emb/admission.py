"""Whether one model takes another request: bounds on inputs, on tokens and on the time that it would wait.

A request is taken or refused as a whole, before any of its inputs is tokenized. Pure bookkeeping: knows
nothing of clocks, threads, queues or HTTP, and is told what the device has done.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from infinity_emb.errors import BadInput, Overloaded
from infinity_emb.fairness import LANE_WEIGHTS
from infinity_emb.primitives import Lane

# How much a new reading of the speed counts against the older ones, and how long one must be.
_SMOOTHING = 0.3
_MIN_READING_S = 0.25
MAX_RETRY_AFTER_S = 60


@dataclass(frozen=True, slots=True)
class Progress:
    """What a model's devices have done since they started.

    busy_s: summed over what computes side by side, of which there are `num_parallel`.
    """

    num_items: int
    num_tokens: int
    busy_s: float
    num_parallel: int


@dataclass(frozen=True, slots=True)
class Backlog:
    """What is queued behind the devices."""

    num_tokens: int
    num_interactive_tokens: int


class Speed:
    """Items and tokens a second, from the latest readings; unknown until a device has worked a moment."""

    def __init__(self) -> None:
        self.items_per_s = math.inf
        self.tokens_per_s = math.inf
        self._before = Progress(0, 0, 0.0, 1)

    def read(self, now: Progress) -> None:
        """Take a reading, where enough was computed since the last one."""
        busy_s = (now.busy_s - self._before.busy_s) / now.num_parallel
        if busy_s < _MIN_READING_S:
            return
        items_per_s = (now.num_items - self._before.num_items) / busy_s
        tokens_per_s = (now.num_tokens - self._before.num_tokens) / busy_s
        self.items_per_s = _smoothed(self.items_per_s, items_per_s)
        self.tokens_per_s = _smoothed(self.tokens_per_s, tokens_per_s)
        self._before = now


def _smoothed(before: float, reading: float) -> float:
    reading = max(reading, 1e-9)
    return reading if math.isinf(before) else before + _SMOOTHING * (reading - before)


@dataclass(slots=True, kw_only=True)
class Admission:
    """The requests that one model has taken and not ended.

    max_items, max_tokens: of inputs that wait.
    max_wait_s: a request that would wait longer is refused; infinity never refuses for that.
    """

    name: str
    max_items: int
    max_tokens: int
    max_wait_s: float
    progress: Callable[[], Progress]
    backlog: Callable[[], Backlog]
    num_items: dict[Lane, int] = field(default_factory=lambda: dict.fromkeys(LANE_WEIGHTS, 0))
    num_refused: int = 0
    _has_refused: bool = False  # and nothing was found since that would be taken
    _speed: Speed = field(default_factory=Speed)

    @property
    def num_accepted_items(self) -> int:
        """Inputs that were taken and are not answered."""
        return sum(self.num_items.values())

    def take(self, num_items: int, lane: Lane, *, num_total: int | None = None) -> None:
        """Room for so many inputs. Raises Overloaded, and BadInput for more than there will ever be room for.

        num_total: of the whole request, where it had room for some before.
        """
        num_total = num_items if num_total is None else num_total
        if num_total > self.max_items:
            raise BadInput(
                f"the request has {num_total} inputs, more than the {self.max_items} that may ever wait"
            )
        wait_s = self.estimated_wait_s(lane)
        complaint = self._complaint(num_items, wait_s)
        if complaint:
            raise self._refuse(complaint, wait_s)
        self.num_items[lane] += num_items

    def check_room(self) -> None:
        """Raises Overloaded where the next request would be refused whatever it is, and counts it as refused.

        Only looks after something was refused: where there is room, this costs nothing.
        """
        if not self._has_refused:
            return
        wait_s = self.estimated_wait_s("interactive")
        complaint = self._complaint(1, wait_s)
        if complaint:
            raise self._refuse(complaint, wait_s)
        self._has_refused = False

    def _refuse(self, complaint: str, wait_s: float) -> Overloaded:
        self.num_refused += 1
        self._has_refused = True
        return Overloaded(
            f"model {self.name} is currently overloaded: {complaint}; try again later",
            retry_after_s=self._retry_after_s(wait_s),
        )

    def give_back(self, num_items: int, lane: Lane) -> None:
        """They have ended."""
        self.num_items[lane] -= num_items

    def is_full(self) -> bool:
        """Whether the next request would be refused."""
        return self._complaint(1, self.estimated_wait_s("interactive")) is not None

    def estimated_wait_s(self, lane: Lane) -> float:
        """Seconds until an input that comes now would be computed, by what stands before it; 0 where unknown.

        A bulk request stands behind everything; an interactive one behind its own lane and the share that
        bulk work has beside that.
        """
        self._speed.read(self.progress())
        backlog = self.backlog()
        num_items, num_tokens = self.num_accepted_items, backlog.num_tokens
        if lane == "interactive":
            share = 1 + LANE_WEIGHTS["bulk"] / LANE_WEIGHTS["interactive"]
            num_items = min(num_items, math.ceil(share * self.num_items["interactive"]))
            num_tokens = min(num_tokens, math.ceil(share * backlog.num_interactive_tokens))
        # Accepted inputs may still be tokenized, so that the queue's tokens alone say too little.
        return max(num_items / self._speed.items_per_s, num_tokens / self._speed.tokens_per_s)

    def _complaint(self, num_items: int, wait_s: float) -> str | None:
        if self.num_accepted_items + num_items > self.max_items:
            return f"{self.num_accepted_items} of {self.max_items} inputs wait already"
        if (num_tokens := self.backlog().num_tokens) >= self.max_tokens:
            return f"{num_tokens} tokens wait already, the limit is {self.max_tokens}"
        if wait_s > self.max_wait_s:
            return f"the request would wait for about {wait_s:.0f} s, the limit is {self.max_wait_s:g} s"
        return None

    def _retry_after_s(self, wait_s: float) -> int:
        """When half of what waits is done; there is room again then, and others have asked meanwhile."""
        return max(1, min(MAX_RETRY_AFTER_S, math.ceil(wait_s / 2)))
