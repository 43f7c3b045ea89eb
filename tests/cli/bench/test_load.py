"""The load generator against servers of the same event loop that behave as a script says."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from infinity_emb.cli.bench.connections import NO_CONNECTION, NO_RESPONSE, TIMEOUT, Target, build_request
from infinity_emb.cli.bench.load import Result, Span, iterate_poisson, run_closed, run_open
from infinity_emb.cli.bench.summary import Level, summarize
from infinity_emb.cli.remote_server import RemoteServer
from tests.support.event_loop import PATIENCE_S, run

Respond = Callable[[int], Awaitable[bytes]]
OK = b'HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n{"prompt_tokens": 7}'
REQUEST = build_request(RemoteServer("http://host/base", "key"), "/embed", {"inputs": ["é"]})


@asynccontextmanager
async def stub(respond: Respond) -> AsyncIterator[Target]:
    """Answers the n-th request with what `respond(n)` returns; b"" closes the connection."""
    numbers = itertools.count()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"]}"):
                if not (response := await respond(next(numbers))):
                    break
                writer.write(response)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield Target("127.0.0.1", server.sockets[0].getsockname()[1], uses_tls=False)


def send(respond: Respond, num_requests: int, num_clients: int = 1, timeout_s: float = 60) -> list[Result]:
    async def main() -> list[Result]:
        async with stub(respond) as target:
            return await run_closed(
                [REQUEST],
                target,
                num_clients=num_clients,
                span=Span(num_requests=num_requests),
                timeout_s=timeout_s,
            )

    return run(main())


def test_a_request_has_the_path_the_key_and_its_length() -> None:
    head, _, body = REQUEST.partition(b"\r\n\r\n")
    assert head.split(b"\r\n")[:2] == [b"POST /base/embed HTTP/1.1", b"Host: host"]
    assert b"Authorization: Bearer key" in head
    assert f"Content-Length: {len(body)}".encode() in head
    assert body.decode() == '{"inputs": ["é"]}'


def test_clients_send_when_they_have_their_response() -> None:
    in_flight, most = 0, 0

    async def respond(_: int) -> bytes:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        await asyncio.sleep(0.001)
        in_flight -= 1
        return OK

    results = send(respond, 20, num_clients=4)
    assert most == 4
    assert [result.outcome for result in results] == ["200"] * 20
    assert {result.num_tokens for result in results} == {7}
    assert all(result.due_s <= result.sent_s <= result.received_s for result in results)


def test_arrivals_wait_for_nobody_and_latency_counts_from_when_they_were_due() -> None:
    """A closed loop would send one request, wait for the server, and report one slow response."""
    arrivals = [0.001 * number for number in range(10)]
    all_here = asyncio.Event()

    async def respond(number: int) -> bytes:
        if number == len(arrivals) - 1:
            await asyncio.sleep(0.05)
            all_here.set()
        await asyncio.wait_for(all_here.wait(), PATIENCE_S)
        return OK

    async def main() -> list[Result]:
        async with stub(respond) as target:
            return await run_open([REQUEST], target, arrivals=iter(arrivals), span=Span(num_requests=10))

    results = sorted(run(main()), key=lambda result: result.due_s)
    assert [result.due_s for result in results] == arrivals
    assert [result.latency_s for result in results] == [
        result.received_s - due_s for result, due_s in zip(results, arrivals, strict=True)
    ]
    assert min(result.latency_s for result in results) >= 0.05
    assert max(result.due_s for result in results) < min(result.received_s for result in results)


@pytest.mark.parametrize(
    ("response", "outcome"),
    [
        (OK.replace(b"200 OK", b"429 Too Many Requests"), "429"),
        (b"", NO_RESPONSE),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{", TIMEOUT),
        (b"SSH-2.0\r\n\r\n", "invalid HTTP"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, "200"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", "200"),
        (b"HTTP/1.0 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}", "200"),
    ],
)
def test_every_ending_is_one_result(response: bytes, outcome: str) -> None:
    async def respond(_: int) -> bytes:
        return response

    results = send(respond, 2, timeout_s=0.1)
    assert [result.outcome for result in results] == [outcome] * 2


def test_a_server_that_nobody_listens_at_is_an_outcome_too() -> None:
    async def main() -> list[Result]:
        async with stub(lambda _: asyncio.sleep(0, OK)) as target:
            pass
        return await run_closed([REQUEST], target, num_clients=1, span=Span(num_requests=1))

    assert [result.outcome for result in run(main())] == [NO_CONNECTION]


def test_a_connection_that_the_server_closed_meanwhile_is_replaced() -> None:
    async def respond(number: int) -> bytes:
        return b"" if number == 1 else OK

    assert [result.outcome for result in send(respond, 3)] == ["200"] * 3


def test_tokens_are_read_from_teis_header_and_from_the_end_of_a_long_body() -> None:
    header = b"HTTP/1.1 200 OK\r\nX-Compute-Tokens: 5\r\ncontent-length: 2\r\n\r\n[]"
    body = b'{"data": "' + b"A" * 100_000 + b'", "usage": {"prompt_tokens": 8, "total_tokens": 9}}'
    long = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    answers = [header, long, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]"]

    async def respond(number: int) -> bytes:
        return answers[number]

    assert [result.num_tokens for result in send(respond, 3)] == [5, 9, None]


def test_poisson_arrivals_have_the_rate_and_follow_the_seed() -> None:
    first = list(itertools.islice(iterate_poisson(100, seed=3), 5000))
    assert first == list(itertools.islice(iterate_poisson(100, seed=3), 5000))
    assert first[-1] == pytest.approx(50, rel=0.06)
    gaps = [later - earlier for earlier, later in itertools.pairwise(first)]
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert variance == pytest.approx(mean**2, rel=0.15)  # of the exponential distribution


def result(due_s: float, received_s: float, outcome: str = "200", num_tokens: int | None = 3) -> Result:
    return Result(due_s, due_s + 0.001, received_s, outcome, num_tokens, 0)


def test_rates_count_what_came_in_time_and_latencies_all_successes() -> None:
    results = [result(0, 0.1), result(0.5, 0.9), result(0.9, 3.0), result(0.2, 0.3, "429", None)]
    summary = summarize(results, Level(per_s=4.0), num_items=8, seconds=1.0)
    assert (summary.num_ok, summary.requests_per_s, summary.inputs_per_s, summary.tokens_per_s) == (
        3,
        2,
        16,
        6,
    )
    assert summary.mean_ms == pytest.approx(2600 / 3)
    assert summary.latency_ms[50] == pytest.approx(400)
    assert summary.latency_ms[99] == pytest.approx(2066)
    assert summary.errors == {"429": 1}
    assert summary.late_ms == pytest.approx(1)
    counted = summarize(results, Level(num_clients=1), num_items=1, seconds=None)
    assert counted.requests_per_s == 1  # three in the three seconds until the last one
    nothing = summarize([result(0, 1, "500", None)], Level(num_clients=1), num_items=1, seconds=None)
    assert (nothing.requests_per_s, nothing.tokens_per_s, nothing.latency_ms[50]) == (0, None, None)
