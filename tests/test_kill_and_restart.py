"""Stop and kill a server under load, and start another in its place."""

from __future__ import annotations

import asyncio
import signal
from base64 import b64decode
from collections import Counter
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.support.event_loop import run
from tests.support.live_clients import (
    CLOSED,
    embed_texts,
    make_texts_with,
    open_client,
    read_counters,
    send_requests,
)
from tests.support.server_process import FAKE, StartServer

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_stopped_under_load_answers_or_closes_and_can_be_replaced(
    serve: StartServer, number: signal.Signals
) -> None:
    server = serve("v2", *FAKE, "--model-id", "debug?delay_s=0.01", "--batch-size", "4")
    port = server.url.rpartition(":")[2]

    async def load() -> list[int]:
        async with open_client(server) as client:
            asking = asyncio.create_task(send_requests(client, make_texts_with("", every=2), 600))
            while server.process.poll() is None and not asking.done():
                if (await try_to_read_counters(client))["infinity_items_total"] > 100:
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
        async with open_client(again) as client:
            assert await embed_texts(client, "hello again") == 200

    run(ask_again())


async def try_to_read_counters(client: httpx.AsyncClient) -> Counter[str]:
    try:
        return await read_counters(client)
    except httpx.TransportError:
        return Counter()


def test_a_killed_server_restarts_with_its_cache_and_the_same_vectors(
    serve: StartServer, tmp_path: Path
) -> None:
    flags = ["v2", "--host", "127.0.0.1", "--no-model-warmup", "--vector-disk-cache"]
    texts = [f"a text of its own, number {number}" for number in range(400)]

    async def request_vectors(client: httpx.AsyncClient, number: int) -> list[str]:
        """Return base64 vectors."""
        body = {"input": texts[number : number + 8], "encoding_format": "base64"}
        response = await client.post("/embeddings", json=body)
        assert response.status_code == 200, response.text
        return [member["embedding"] for member in response.json()["data"]]

    async def load_and_kill() -> dict[int, list[str]]:
        answers: dict[int, list[str]] = {}

        async def one_client(client: httpx.AsyncClient, first: int) -> None:
            with suppress(httpx.TransportError):
                for number in range(first, len(texts), 32):
                    answers[number] = await request_vectors(client, number)

        async with open_client(server) as client:
            asking = [asyncio.create_task(one_client(client, 8 * place)) for place in range(4)]
            while len(answers) < 20:
                await asyncio.sleep(0.01)
            server.process.kill()
            await asyncio.gather(*asking)
        return answers

    async def ask_again(answers: dict[int, list[str]]) -> None:
        async with open_client(again) as client:
            for number, expected in answers.items():
                vectors = await request_vectors(client, number)
                for vector, one in zip(vectors, expected, strict=True):
                    difference = np.abs(
                        np.frombuffer(b64decode(vector), "<f4") - np.frombuffer(b64decode(one), "<f4")
                    )
                    assert difference.max() <= 1e-6
            counters = await read_counters(client)
            assert counters["infinity_cache_disk_hits_total"] > 0, "some had been written before the end"
            assert counters["infinity_cache_dropped_total"] == 0

    server = serve(*flags, "--port", "0", INFINITY_HOME=str(tmp_path))
    answers = run(load_and_kill())
    assert server.stop()[0] == -signal.SIGKILL
    again = serve(*flags, "--port", "0", INFINITY_HOME=str(tmp_path))
    run(ask_again(answers))
