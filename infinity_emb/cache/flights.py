"""Answers that are under way: who asks for what another request is about to have waits for that one.

Nobody's fate hangs on another's: a request that fails or is cancelled leaves those who wait for it with
nothing, and they compute for themselves. Belongs to one event loop. Knows nothing of what computes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from infinity_emb.computed import Entry
from infinity_emb.fairness import Flow

Arrival: TypeAlias = "asyncio.Future[Entry | None]"


@dataclass(frozen=True, slots=True)
class Boarding:
    """Places in the list of keys that was given.

    led: whose answers this request is to bring.
    awaited: whose answers another brings; None arrives where it did not.
    """

    led: list[int]
    awaited: Mapping[int, Arrival]


class Flights:
    """The keys that are led, and who waits for each."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[Flow, bytes], list[Arrival]] = {}

    @contextmanager
    def boarded(self, flow: Flow, keys: Sequence[bytes]) -> Iterator[Boarding]:
        """Lead the keys that nobody leads, and wait for the others. What has not landed at the end fails.

        keys: all different.
        flow: only requests of one flow share, so that nobody waits in a place of the queue that is worse
        than its own.
        """
        boarding = self._board(flow, keys)
        try:
            yield boarding
        finally:
            self.land(flow, {keys[place]: None for place in boarding.led})
            for arrival in boarding.awaited.values():
                arrival.cancel()

    def land(self, flow: Flow, entries: Mapping[bytes, Entry | None]) -> None:
        """The answers of keys that the caller leads, or None for none. What has landed once, stays."""
        for key, entry in entries.items():
            for arrival in self._waiting.pop((flow, key), ()):
                if not arrival.done():
                    arrival.set_result(entry)

    def _board(self, flow: Flow, keys: Sequence[bytes]) -> Boarding:
        led: list[int] = []
        awaited: dict[int, Arrival] = {}
        for place, key in enumerate(keys):
            others = self._waiting.get((flow, key))
            if others is None:
                self._waiting[flow, key] = []
                led.append(place)
            else:
                awaited[place] = asyncio.get_running_loop().create_future()
                others.append(awaited[place])
        return Boarding(led, awaited)
