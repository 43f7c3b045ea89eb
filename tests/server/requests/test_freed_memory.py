"""What a request held is freed at its end: not by the garbage collector, which may come much later."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI

from tests.support.tiny_server import build_debug_app, debug_args

TEXTS = [f"{number} " + "ab" * 500 for number in range(40)]
LARGE_BYTES = 10_000
MULTIVECTOR = "debug?kind=multivector"
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], int]] = {
    "a vector for each text": ("debug", {}, {}, 200),
    "a vector for each token": (MULTIVECTOR, {}, {}, 200),
    "a text that occurs often": (MULTIVECTOR, {}, {"input": ["ab" * 5000] * 20}, 200),
    "no room for the response": (MULTIVECTOR, {"max_total_body_bytes": 4_000_000}, {}, 503),
    "no room for the vectors": (MULTIVECTOR, {"max_total_body_bytes": 1_000_000}, {}, 503),
    "a text that fails": (MULTIVECTOR + "&fail_on=poison", {}, {"input": [*TEXTS, "poison"]}, 500),
    "a text that is too long": (MULTIVECTOR, {}, {"truncate_prompt_tokens": 900, "truncate": False}, 400),
    "too little time": (MULTIVECTOR + "&delay_s=0.2", {}, {"timeout": 0.1}, 504),
}


async def post(app: FastAPI, **members: Any) -> int:
    """Send a request without a client, and return the status of the response."""
    messages = [{"type": "http.request", "body": json.dumps(members).encode(), "more_body": False}]
    statuses: list[int] = []

    async def receive() -> Any:
        if not messages:
            await asyncio.Event().wait()
        return messages.pop()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/embeddings",
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
    }
    await app(scope, receive, send)
    [status] = statuses
    return status


@contextmanager
def collecting_garbage() -> Iterator[list[Any]]:
    """Leave garbage to the end of the block, and put it into a list."""
    garbage: list[Any] = []
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield garbage
        gc.collect()
        garbage += gc.garbage
    finally:
        gc.garbage.clear()
        gc.set_debug(0)
        gc.enable()


def describe_large(garbage: list[Any]) -> dict[str, int]:
    """Return the bytes of large texts, bodies and vectors that garbage refers to, by their types."""
    sizes: dict[str, int] = {}
    for value in {id(value): value for each in garbage for value in gc.get_referents(each)}.values():
        is_array = isinstance(value, np.ndarray)
        num_bytes = value.nbytes if is_array else sys.getsizeof(value)
        if isinstance(value, (bytes, bytearray, str, np.ndarray)) and num_bytes >= LARGE_BYTES:
            name = type(value).__name__
            sizes[name] = sizes.get(name, 0) + num_bytes
    return sizes


@pytest.mark.anyio
@pytest.mark.parametrize("name", list(CASES))
async def test_what_a_request_held_is_freed_at_its_end(name: str) -> None:
    """Each left a cycle with its vectors, which were released from the account: hundreds of megabytes."""
    model, config, members, status = CASES[name]
    app = build_debug_app(debug_args(model), **config)
    async with app.router.lifespan_context(app):
        await post(app, input="warm up")
        with collecting_garbage() as garbage:
            assert await post(app, **{"input": TEXTS, **members}) == status
    assert describe_large(garbage) == {}
