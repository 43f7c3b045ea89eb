"""Whatever goes wrong in a live server, every request has one answer or a closed connection, and the next one
is answered. The server is a process of its own; its counters must agree with what the clients saw.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import signal
from base64 import b64decode
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
import pytest

from tests.server_process import DEADLINE_S, FAKE, Server, StartServer

pytestmark = pytest.mark.slow
T = TypeVar("T")

# What a client that has no answer saw: the connection was closed.
CLOSED = 0
NUM_CLIENTS = 24


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(coroutine, DEADLINE_S))


@asynccontextmanager
async def client_of(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=NUM_CLIENTS, max_keepalive_connections=NUM_CLIENTS)
    async with httpx.AsyncClient(base_url=server.url, timeout=DEADLINE_S, limits=limits) as client:
        yield client


async def ask(client: httpx.AsyncClient, *texts: str, **members: Any) -> int:
    """The status; an answer of 200 must be that of these very texts."""
    try:
        response = await client.post("/embeddings", json={"input": texts, **members})
    except httpx.TransportError:
        return CLOSED
    if response.status_code == 200:
        data = response.json()["data"]
        assert [member["embedding"][0] for member in data] == [len(text) for text in texts]
        assert [member["index"] for member in data] == list(range(len(texts)))
    else:
        assert response.json()["error"]["message"]
    return response.status_code


async def ask_many(
    client: httpx.AsyncClient, make_texts: Callable[[int], list[str]], num_requests: int
) -> list[int]:
    """So many requests by `NUM_CLIENTS` clients at once; the status of each."""
    numbers = iter(range(num_requests))
    statuses: dict[int, int] = {}

    async def one_client() -> None:
        for number in numbers:
            statuses[number] = await ask(client, *make_texts(number))

    await asyncio.gather(*(one_client() for _ in range(NUM_CLIENTS)))
    return [statuses[number] for number in range(num_requests)]


async def counters_of(client: httpx.AsyncClient) -> Counter[str]:
    """`/metrics` of all models together."""
    text = (await client.get("/metrics")).text
    values: Counter[str] = Counter()
    for name, value in re.findall(r'^(infinity_\w+)\{model="[^"]+"\} ([\d.e+]+)$', text, re.MULTILINE):
        values[name] += float(value)
    return values


def texts_with(word: str, *, every: int) -> Callable[[int], list[str]]:
    """One to four texts of different lengths; every so many requests one of them holds `word`."""

    def make(number: int) -> list[str]:
        texts = [f"text {number} {'x' * (7 * each)}" for each in range(1 + number % 4)]
        if number % every == every - 1:
            texts[-1] += f" {word}"
        return texts

    return make


FAULTS = ["fail_on", "wrong_count_on", "nan_on", "die_on"]


@pytest.mark.parametrize("fault", FAULTS)
def test_only_requests_with_the_guilty_text_fail_and_the_counters_say_so(
    serve: StartServer, fault: str
) -> None:
    server = serve("v2", *FAKE, "--model-id", f"debug?{fault}=poison")
    make_texts = texts_with("poison", every=40)

    async def main() -> None:
        async with client_of(server) as client:
            statuses = await ask_many(client, make_texts, 400)
            for number, status in enumerate(statuses):
                assert status == (500 if number % 40 == 39 else 200)
            assert await ask(client, "afterwards") == 200
            assert (await client.get("/ready")).status_code == 200
            counters = await counters_of(client)
            assert counters["infinity_failed_items_total"] == statuses.count(500)
            answered = sum(len(make_texts(n)) for n, status in enumerate(statuses) if status == 200)
            assert counters["infinity_items_total"] >= answered
            assert counters["infinity_queue_items"] == counters["infinity_pending_requests"] == 0

    run(main())


def test_a_device_that_hangs_fails_what_waits_and_ends_the_process(serve: StartServer) -> None:
    server = serve(
        "v2", *FAKE, "--model-id", "debug?hang_on=poison", "--batch-timeout-s", "1", "--batch-size", "1"
    )

    async def main() -> list[int]:
        async with client_of(server) as client:
            assert await ask(client, "before") == 200
            return await asyncio.gather(*(ask(client, text) for text in ["poison", *map(str, range(20))]))

    statuses = run(main())
    exit_code, rest = server.stop()
    assert statuses[0] == 503
    assert set(statuses) <= {200, 503}
    assert exit_code == 1
    assert "the device of debug?hang_on=poison is lost" in rest.splitlines()[-1]
    assert "Traceback" not in rest


def test_a_server_that_stood_still_goes_on_and_answers_everything(serve: StartServer) -> None:
    """As when its machine sleeps: event loop, devices and watchdog all miss more than a batch may take."""
    server = serve("v2", *FAKE, "--model-id", "debug?delay_s=0.05", "--batch-timeout-s", "1")

    async def main() -> None:
        async with client_of(server) as client:
            asking = asyncio.create_task(ask_many(client, texts_with("", every=2), 200))
            while (await counters_of(client))["infinity_items_total"] < 20:
                await asyncio.sleep(0.01)
            server.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(3)
            assert not asking.done()
            server.process.send_signal(signal.SIGCONT)
            assert set(await asking) == {200}
            assert (await client.get("/ready")).status_code == 200
            assert (await counters_of(client))["infinity_restarts_total"] == 0

    run(main())
    assert server.stop(signal.SIGTERM)[0] == 0


def test_a_thread_that_keeps_dying_ends_the_process(serve: StartServer) -> None:
    server = serve("v2", *FAKE, "--model-id", "debug?die_on=poison")

    async def main() -> list[int]:
        async with client_of(server) as client:
            return [await ask(client, "poison") for _ in range(7)]

    statuses = run(main())
    exit_code, _ = server.stop()
    assert statuses[:5] == [500] * 5
    assert set(statuses[5:]) <= {503, CLOSED}
    assert exit_code == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_that_is_stopped_under_load_answers_or_closes_and_another_takes_its_place(
    serve: StartServer, number: signal.Signals
) -> None:
    server = serve("v2", *FAKE, "--model-id", "debug?delay_s=0.01", "--batch-size", "4")
    port = server.url.rpartition(":")[2]

    async def load() -> list[int]:
        async with client_of(server) as client:
            asking = asyncio.create_task(ask_many(client, texts_with("", every=2), 600))
            while server.process.poll() is None and not asking.done():
                if (await counters_of_or_none(client))["infinity_items_total"] > 100:
                    break
            server.process.send_signal(number)
            return await asking

    statuses = run(load())
    assert len(statuses) == 600
    assert statuses.count(200) > 10
    assert set(statuses) <= {200, 503, CLOSED}
    if number == signal.SIGTERM:
        assert server.stop()[0] == 0
    else:
        assert server.stop()[0] == -signal.SIGKILL

    again = serve(
        "v2", "--engine", "debugengine", "--host", "127.0.0.1", "--port", port, "--model-id", "debug"
    )

    async def ask_again() -> None:
        async with client_of(again) as client:
            assert await ask(client, "hello again") == 200

    run(ask_again())


async def counters_of_or_none(client: httpx.AsyncClient) -> Counter[str]:
    try:
        return await counters_of(client)
    except httpx.TransportError:
        return Counter()


def test_a_real_model_that_is_killed_under_load_comes_back_with_its_cache_and_the_same_vectors(
    serve: StartServer, tmp_path: Path
) -> None:
    flags = ["v2", "--host", "127.0.0.1", "--no-model-warmup", "--vector-disk-cache"]
    texts = [f"a text of its own, number {number}" for number in range(400)]

    async def vectors_of(client: httpx.AsyncClient, number: int) -> list[str]:
        """As base64: the same bits, or others."""
        body = {"input": texts[number : number + 8], "encoding_format": "base64"}
        response = await client.post("/embeddings", json=body)
        assert response.status_code == 200, response.text
        return [member["embedding"] for member in response.json()["data"]]

    async def load_and_kill() -> dict[int, list[str]]:
        answers: dict[int, list[str]] = {}

        async def one_client(client: httpx.AsyncClient, first: int) -> None:
            with suppress(httpx.TransportError):
                for number in range(first, len(texts), 32):
                    answers[number] = await vectors_of(client, number)

        async with client_of(server) as client:
            asking = [asyncio.create_task(one_client(client, 8 * place)) for place in range(4)]
            while len(answers) < 20:
                await asyncio.sleep(0.01)
            server.process.kill()
            await asyncio.gather(*asking)
        return answers

    async def ask_again(answers: dict[int, list[str]]) -> None:
        async with client_of(again) as client:
            for number, expected in answers.items():
                vectors = await vectors_of(client, number)
                for vector, one in zip(vectors, expected, strict=True):
                    difference = np.abs(
                        np.frombuffer(b64decode(vector), "<f4") - np.frombuffer(b64decode(one), "<f4")
                    )
                    assert difference.max() <= 1e-6
            counters = await counters_of(client)
            assert counters["infinity_cache_disk_hits_total"] > 0, "some had been written before the end"
            assert counters["infinity_cache_dropped_total"] == 0

    server = serve(*flags, "--port", "0", INFINITY_HOME=str(tmp_path))
    answers = run(load_and_kill())
    assert server.stop()[0] == -signal.SIGKILL
    again = serve(*flags, "--port", "0", INFINITY_HOME=str(tmp_path))
    run(ask_again(answers))


def test_clients_that_hang_up_take_their_work_with_them(serve: StartServer) -> None:
    server = serve("v2", *FAKE, "--model-id", "debug?delay_s=0.05", "--batch-size", "1")

    async def main() -> None:
        async with client_of(server) as client:
            leaving = [
                asyncio.create_task(ask(client, *(f"text {number} {each}" for each in range(100))))
                for number in range(10)
            ]
            while (await counters_of(client))["infinity_queue_items"] < 500:
                await asyncio.sleep(0.01)
            for task in leaving:
                task.cancel()
            await asyncio.gather(*leaving, return_exceptions=True)
            assert await ask(client, "somebody else") == 200
            while (await counters_of(client))["infinity_pending_requests"]:
                await asyncio.sleep(0.01)
            counters = await counters_of(client)
            assert counters["infinity_items_total"] < 500, "most of a thousand texts were never computed"
            assert counters["infinity_cancelled_requests_total"] == 10
            assert counters["infinity_dropped_items_total"] > 400
            assert counters["infinity_failed_items_total"] == 0

    run(main())


def test_a_signal_has_the_process_tell_what_it_is_at_and_nothing_that_was_sent(serve: StartServer) -> None:
    server = serve("v2", *FAKE, "--model-id", "debug?delay_s=2", "--served-model-name", "slow")

    async def main() -> None:
        async with client_of(server) as client:
            asking = [asyncio.create_task(ask(client, f"secret {number}")) for number in range(3)]
            while (await counters_of(client))["infinity_pending_requests"] < 3:
                await asyncio.sleep(0.01)
            server.process.send_signal(signal.SIGUSR1)
            assert set(await asyncio.gather(*asking)) == {200}

    run(main())
    server.wait_for_line("infinity-replica-0")
    told = "".join(server.lines)
    for words in ["model 'slow'", "accepted: 3 requests of 3 inputs", "items under way for", " tasks\n"]:
        assert words in told
    assert "secret" not in told
    server.stop(signal.SIGTERM)


def test_everything_at_once(serve: StartServer) -> None:
    """Several models, each with its own fault, bad requests among the good ones, clients that hang up."""
    rng = random.Random(0)
    models = {
        "fails": "debug?fail_on=poison",
        "dies": "debug?die_on=poison",
        "miscounts": "debug?wrong_count_on=poison",
        "slow": "debug?delay_s=0.02&nan_on=poison",
    }
    options = [("--model-id", path, "--served-model-name", name) for name, path in models.items()]
    server = serve("v2", *FAKE, *itertools.chain(*options), "--max-queue-items", "200")

    async def one_request(client: httpx.AsyncClient) -> tuple[str, int]:
        model = rng.choice(list(models))
        match rng.choices(["good", "poison", "bad", "leave"], weights=[80, 2, 10, 8])[0]:
            case "good":
                texts = [f"a text {'x' * rng.randrange(200)}" for _ in range(rng.randrange(1, 40))]
                return "good", await ask(client, *texts, model=model)
            case "poison":
                return "poison", await ask(client, "fine", "poison", model=model)
            case "bad":
                response = await client.post(
                    "/embeddings",
                    content=b'{"input": [' * rng.randrange(1, 5),
                    headers={"content-type": "application/json"},
                )
                return "bad", response.status_code
            case _:
                with suppress(TimeoutError):
                    await asyncio.wait_for(ask(client, *["leaves"] * 30, model=model), rng.random() / 20)
                return "leave", CLOSED

    async def main() -> None:
        async with client_of(server) as client:
            seen: Counter[tuple[str, int]] = Counter()

            async def one_client() -> None:
                for _ in range(20):
                    seen[await one_request(client)] += 1

            await asyncio.gather(*(one_client() for _ in range(NUM_CLIENTS)))
            allowed = {"good": {200, 429}, "poison": {500, 429, 200}, "bad": {422}, "leave": {CLOSED}}
            for (kind, status), number in seen.items():
                assert status in allowed[kind], f"{number} {kind} requests were answered {status}"
            assert seen["good", 200] > 100
            while (await counters_of(client))["infinity_pending_requests"]:
                await asyncio.sleep(0.01)
            for model in models:
                assert await ask(client, "afterwards", model=model) == 200
            assert (await client.get("/ready")).status_code == 200
            counters = await counters_of(client)
            assert counters["infinity_refused_requests_total"] >= seen["good", 429]
            assert counters["infinity_queue_items"] == 0

    run(main())
