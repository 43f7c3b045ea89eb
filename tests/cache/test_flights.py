from __future__ import annotations

import asyncio

from infinity_emb.cache.flights import Flights
from infinity_emb.computed import Entry
from infinity_emb.fairness import Flow
from tests.cache.answers import entry_of, key_of

FLOW = Flow()
KEYS = [key_of(number) for number in range(3)]


def test_who_comes_second_waits_for_what_the_first_leads_and_leads_the_rest() -> None:
    async def main() -> None:
        flights = Flights()
        entry = entry_of(1)
        with flights.boarded(FLOW, KEYS[:2]) as first, flights.boarded(FLOW, KEYS) as second:
            assert (first.led, list(first.awaited)) == ([0, 1], [])
            assert (second.led, list(second.awaited)) == ([2], [0, 1])
            flights.land(FLOW, {KEYS[0]: entry})
            assert await second.awaited[0] is entry
            assert not second.awaited[1].done()

    asyncio.run(main())


def test_what_has_not_landed_at_the_end_arrives_as_none_and_can_be_led_anew() -> None:
    async def main() -> list[Entry | None]:
        flights = Flights()
        with flights.boarded(FLOW, KEYS[1:]) as third:
            try:
                with flights.boarded(FLOW, KEYS[:1]):
                    arrivals = flights.boarded(FLOW, KEYS)
                    waiting = arrivals.__enter__()
                    raise RuntimeError("it failed")
            except RuntimeError:
                pass
            assert third.led == [0, 1]
        with flights.boarded(FLOW, KEYS) as last:
            assert last.led == [0, 1, 2]
        return [await arrival for arrival in waiting.awaited.values()]

    assert asyncio.run(main()) == [None, None, None]


def test_who_waits_and_gives_up_harms_nobody() -> None:
    async def main() -> None:
        flights = Flights()
        with flights.boarded(FLOW, KEYS) as first:
            with flights.boarded(FLOW, KEYS):
                pass
            with flights.boarded(FLOW, KEYS) as third:
                flights.land(FLOW, {key: entry_of(1) for key in KEYS})
                assert all([await arrival for arrival in third.awaited.values()])
            assert first.led == [0, 1, 2]

    asyncio.run(main())


def test_nobody_waits_in_the_place_of_another_client_or_lane() -> None:
    async def main() -> None:
        flights = Flights()
        with flights.boarded(Flow("a", "bulk"), KEYS):
            for flow in (Flow("b", "bulk"), Flow("a", "interactive")):
                with flights.boarded(flow, KEYS) as other:
                    assert other.led == [0, 1, 2]

    asyncio.run(main())
