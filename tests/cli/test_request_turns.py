"""Requests start in turns of their clients, a few in each turn of the event loop."""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from contextvars import ContextVar
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infinity_emb.cli.client_flow import read_flow
from infinity_emb.scheduling import request_turns
from infinity_emb.scheduling.fair_queue import Flow
from infinity_emb.scheduling.request_turns import (
    LONG_TURN_S,
    MAX_STARTS,
    MIN_STARTS,
    PAUSE_S,
    WAITING_PER_START,
    RequestTurns,
)
from tests.support.event_loop import run
from tests.support.server_on_a_thread import (
    HEAD,
    StartHere,
    connect,
    read_all,
    statuses,
    wait_until,
)
from tests.support.tiny_server import build_debug_app, debug_args

LAST = b"GET /health HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n"


def test_a_few_requests_start_in_each_turn_of_the_loop() -> None:
    async def count() -> list[int]:
        turns, started, counts = RequestTurns(3, 3), [], []
        for number in range(8):
            turns.start(Flow("a"), lambda number=number: started.append(number))  # type: ignore[misc]
        for _ in range(4):
            counts.append(len(started))
            await asyncio.sleep(0)
        assert started == list(range(8))
        turns.start(Flow("a"), lambda: started.append(8))
        assert len(started) == 9
        return counts

    assert run(count()) == [3, 6, 8, 8]


def test_a_turn_has_more_starts_after_short_turns_and_fewer_after_long_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def count(durations_s: list[float]) -> list[int]:
        turns, started, counts = RequestTurns(), [], [0]
        now_s = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: now_s)
        for each in range(120):
            turns.start(Flow("a"), lambda each=each: started.append(each))  # type: ignore[misc]
        for duration_s in durations_s:
            counts.append(len(started))
            now_s += duration_s
            await asyncio.sleep(0)
        return [late - early for early, late in itertools.pairwise(counts)]

    long_s = 2 * LONG_TURN_S
    assert run(count([0.0] * 6)) == [MIN_STARTS, 4, 8, 16, MAX_STARTS, MAX_STARTS]
    assert run(count([0.0, 0.0, long_s, long_s, long_s, 0.0])) == [MIN_STARTS, 4, 8, 4, 2, MIN_STARTS]


def test_the_turn_in_which_requests_take_their_first_step_is_measured_though_none_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Turns of 20 ms looked short, and had 32 starts each."""

    async def count() -> int:
        turns, now_s = RequestTurns(), 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: now_s)

        async def take_long() -> None:
            nonlocal now_s
            now_s += 2 * LONG_TURN_S

        tasks = []
        for _ in range(100):  # short turns
            turns.start(Flow("a"), lambda: None)
        while len(turns._waiting):
            await asyncio.sleep(0)
        for _ in range(10):
            turns.start(Flow("a"), lambda: tasks.append(asyncio.create_task(take_long())))
            for _ in range(4):
                await asyncio.sleep(0)
        started: list[int] = []
        for each in range(40):
            turns.start(Flow("a"), lambda each=each: started.append(each))  # type: ignore[misc]
        return len(started)

    assert run(count()) == MIN_STARTS


def test_a_client_with_few_requests_does_not_wait_for_those_of_another() -> None:
    async def start_all() -> list[str]:
        turns, started = RequestTurns(1, 1), []
        for _ in range(100):
            turns.start(Flow("hog"), lambda: started.append("hog"))
        for _ in range(3):
            await asyncio.sleep(0)
        turns.start(Flow("other"), lambda: started.append("other"))
        turns.start(Flow("other"), lambda: started.append("other"))
        for _ in range(6):
            await asyncio.sleep(0)
        return started

    assert run(start_all()).index("other") <= 5
    assert run(start_all())[:10].count("other") == 2


def test_more_requests_start_at_once_when_thousands_wait() -> None:
    """At ten times the load, requests came faster than two in each turn, and waited for seconds."""

    async def count_turns(number: int) -> int:
        turns, started, num_turns = RequestTurns(2, 2), [], 0
        for each in range(number):
            turns.start(Flow("a"), lambda each=each: started.append(each))  # type: ignore[misc]
        while len(started) < number:
            await asyncio.sleep(0)
            num_turns += 1
        return num_turns

    assert run(count_turns(120)) == 59
    assert run(count_turns(4096)) < 6 * WAITING_PER_START


def test_another_event_loop_does_not_wait_for_one_that_was_closed() -> None:
    turns = RequestTurns(1, 1)

    def start_all() -> None:
        for _ in range(3):
            turns.start(Flow("a"), lambda: None)

    loop = asyncio.new_event_loop()
    loop.call_soon(start_all)
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    run(turns.wait(Flow("a")))


def test_one_who_no_longer_waits_takes_no_turn() -> None:
    async def main() -> list[int]:
        turns = RequestTurns(1, 1)
        order: list[int] = []

        async def wait(number: int) -> None:
            await turns.wait(Flow("a"))
            order.append(number)

        tasks = [asyncio.create_task(wait(number)) for number in range(4)]
        await asyncio.sleep(0)
        tasks[2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await turns.wait(Flow("b"))
        return order

    assert run(main()) == [0, 1, 3]


def test_the_loop_pauses_after_a_turn_with_refusals_unless_requests_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def start_all(number: int) -> tuple[list[float], list[int]]:
        pauses: list[float] = []
        counts: list[int] = []
        monkeypatch.setattr(time, "sleep", pauses.append)
        turns, started = RequestTurns(2, 2), []
        for each in range(number):
            turns.start(Flow("a"), lambda each=each: started.append(each))  # type: ignore[misc]
        turns.note_refusal()
        turns.note_refusal()
        for _ in range(3):
            counts.append(len(started))
            await asyncio.sleep(0)
        return pauses, counts

    assert run(start_all(2)) == ([PAUSE_S], [2, 2, 2])
    most = MAX_STARTS
    assert run(start_all(2 * most)) == ([], [2, 2 + most, 4 + most])


def test_the_pause_follows_the_refusal_and_not_a_later_request(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse_later() -> list[float]:
        pauses: list[float] = []
        monkeypatch.setattr(time, "sleep", pauses.append)
        turns = RequestTurns()
        turns.start(Flow("a"), lambda: None)
        for _ in range(3):
            await asyncio.sleep(0)
        turns.note_refusal()
        for _ in range(3):
            await asyncio.sleep(0)
        return pauses

    assert run(refuse_later()) == [PAUSE_S]


def test_a_request_that_cannot_be_started_does_not_stop_the_others() -> None:
    async def start_all() -> list[int]:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        turns, started = RequestTurns(1, 1), []
        for number in range(5):
            turns.start(Flow("a"), lambda number=number: started.append(1 // (number - 2)))  # type: ignore[misc]
        for _ in range(10):
            await asyncio.sleep(0)
        return started

    assert len(run(start_all())) == 4


def test_requests_do_not_start_in_the_context_of_another_one() -> None:
    number: ContextVar[int] = ContextVar("number", default=0)

    async def start_all() -> list[int]:
        turns, seen = RequestTurns(1, 1), []

        async def request() -> None:
            number.set(1)
            for _ in range(4):
                turns.start(Flow("a"), lambda: seen.append(number.get()))

        turns.start(Flow("a"), lambda: None)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await asyncio.create_task(request())
        for _ in range(10):
            await asyncio.sleep(0)
        return seen

    assert run(start_all()) == [1, 0, 0, 0]  # the first starts at once


def test_refusals_of_a_full_queue_are_noted_and_nothing_else(
    start_here: StartHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[bool] = []
    monkeypatch.setattr(RequestTurns, "note_refusal", lambda self: noted.append(True))
    app = build_debug_app(debug_args("debug?delay_s=0.5", max_queue_items=2))
    server = start_here(app=app)
    [engine] = app.engine_array
    with connect(server, make_request(b"a", b"b")) as accepted:
        wait_until(lambda: engine.gate.num_requests == 1)
        with connect(server, make_request(b"c"), make_request(b"c"), LAST) as refused:
            assert statuses(read_all(refused)) == [429, 429, 200]
        accepted.shutdown(socket.SHUT_WR)
        assert statuses(read_all(accepted)) == [200]
    assert noted == [True, True]


def make_request(*texts: bytes) -> bytes:
    body = b'{"input": [%b]}' % b", ".join(b'"%b"' % text for text in texts)
    return HEAD + b"content-length: %d\r\n\r\n" % len(body) + body


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=200))
def test_every_request_starts_once_and_in_the_order_of_its_client(requests: list[tuple[str, bool]]) -> None:
    """Whatever is refused in between.

    requests: clients, and whether a request is refused, or arrives in the next turn.
    """

    async def start_all() -> list[tuple[str, int]]:
        turns, started = RequestTurns(), []
        for number, (client, is_refused) in enumerate(requests):

            def start(client: str = client, number: int = number, is_refused: bool = is_refused) -> None:
                started.append((client, number))
                if is_refused:
                    turns.note_refusal()

            turns.start(Flow(client), start)
            if is_refused:
                await asyncio.sleep(0)
        for _ in requests:
            await asyncio.sleep(0)
        return started

    with patch.object(request_turns, "PAUSE_S", 0):
        started = run(start_all())
    for client in "abc":
        expected = [number for number, (name, _) in enumerate(requests) if name == client]
        assert [number for name, number in started if name == client] == expected
    assert len(started) == len(requests)


def scope_of(path: str = "/models", address: str = "10.0.0.1", **headers: str) -> Any:
    names = {name: value.encode() for name, value in headers.items()}
    return {
        "path": path,
        "client": (address, 1),
        "headers": [(name.replace("_", "-").encode(), value) for name, value in names.items()],
    }


def test_clients_are_told_apart_by_address_and_key_and_probes_from_all_else() -> None:
    different = [
        scope_of(),
        scope_of(address="10.0.0.2"),
        scope_of(authorization="Bearer a"),
        scope_of(authorization="Bearer b"),
        scope_of(api_key="a"),
        scope_of("/health", authorization="Bearer a"),
        scope_of("/metrics"),
    ]
    assert len({read_flow(scope) for scope in different}) == len(different)
    assert read_flow(scope_of("/embeddings")) == read_flow(scope_of("/nothing"))
    assert read_flow(scope_of("/health", authorization="x")) == read_flow(scope_of("/health"))


@pytest.mark.parametrize("client", [None, ("", 0)])
def test_a_unix_socket_has_no_addresses(client: Any) -> None:
    assert read_flow({**scope_of(), "client": client}) == Flow(" ")
