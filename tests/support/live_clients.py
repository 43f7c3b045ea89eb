"""Send requests to a server process from many clients, and read its counters."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx

from tests.support.server_process import DEADLINE_S, Server

# Status of a request without a response: the connection was closed.
CLOSED = 0
NUM_CLIENTS = 24


@asynccontextmanager
async def open_client(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=NUM_CLIENTS, max_keepalive_connections=NUM_CLIENTS)
    async with httpx.AsyncClient(base_url=server.url, timeout=DEADLINE_S, limits=limits) as client:
        yield client


async def embed_texts(client: httpx.AsyncClient, *texts: str, **fields: Any) -> int:
    """Return the status; a 200 must have the vectors of these texts."""
    try:
        response = await client.post("/embeddings", json={"input": texts, **fields})
    except httpx.TransportError:
        return CLOSED
    if response.status_code == 200:
        data = response.json()["data"]
        assert [member["embedding"][0] for member in data] == [len(text) for text in texts]
        assert [member["index"] for member in data] == list(range(len(texts)))
    else:
        assert response.json()["error"]["message"]
    return response.status_code


async def send_requests(
    client: httpx.AsyncClient, make_texts: Callable[[int], list[str]], num_requests: int
) -> list[int]:
    """Send requests from `NUM_CLIENTS` concurrent clients; return the status of each."""
    numbers = iter(range(num_requests))
    statuses: dict[int, int] = {}

    async def one_client() -> None:
        for number in numbers:
            statuses[number] = await embed_texts(client, *make_texts(number))

    await asyncio.gather(*(one_client() for _ in range(NUM_CLIENTS)))
    return [statuses[number] for number in range(num_requests)]


async def read_counters(client: httpx.AsyncClient) -> Counter[str]:
    """Read `/metrics`, summed over all models."""
    text = (await client.get("/metrics")).text
    values: Counter[str] = Counter()
    for name, value in re.findall(r'^(infinity_\w+)\{model="[^"]+"\} ([\d.e+]+)$', text, re.MULTILINE):
        values[name] += float(value)  # type: ignore[assignment]  # counts of seconds too
    return values


def make_texts_with(word: str, *, every: int) -> Callable[[int], list[str]]:
    """Make one to four texts of different lengths; in each `every`-th request one contains `word`."""

    def make(number: int) -> list[str]:
        texts = [f"text {number} {'x' * (7 * each)}" for each in range(1 + number % 4)]
        if number % every == every - 1:
            texts[-1] += f" {word}"
        return texts

    return make
