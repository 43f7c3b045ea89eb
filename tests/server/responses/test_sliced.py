"""Responses that are encoded in slices, on a thread, and sent slice by slice."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import numpy as np
import pytest
from starlette.exceptions import HTTPException

from infinity_emb.server.responses import sliced
from infinity_emb.server.responses.json_vectors import json_response
from infinity_emb.server.responses.sliced import JsonList
from tests.support.event_loop import run
from tests.support.responses import read_body, send_response
from tests.support.tiny_server import build_debug_app, client_of, embed


def numbers(count: int, make: Any = float) -> JsonList:
    return JsonList(make, count, count)


@pytest.mark.parametrize("count", [0, 1, 7, 12, 13, 100])
@pytest.mark.parametrize("size", [1, 12, 1000])
def test_slices_make_the_document_that_one_call_makes(
    count: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sliced, "VALUES_PER_SLICE", size)
    lists = {"a": numbers(count), "b": {"c": [numbers(2), numbers(count)]}, "\0": "\0"}
    read = json.loads(read_body(json_response(lists)))
    values = [float(number) for number in range(count)]
    assert read == {"a": values, "b": {"c": [[0.0, 1.0], values]}, "\0": "\0"}


def test_lists_of_lists_are_encoded_in_slices_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sliced, "VALUES_PER_SLICE", 5)
    nested = JsonList(lambda row: {"row": numbers(row)}, 20, 190)
    read = json.loads(read_body(json_response(nested)))
    assert read == [{"row": list(map(float, range(row)))} for row in range(20)]


def test_a_large_response_declares_its_length_and_is_sent_in_pieces() -> None:
    rows = np.random.default_rng(0).standard_normal((100, 5000)).astype(np.float32)
    start, *others = run(send_response(json_response(JsonList(rows.__getitem__, len(rows), rows.size))))
    sizes = [len(message["body"]) for message in others]
    headers = dict(start["headers"])
    assert int(headers[b"content-length"]) == sum(sizes) > 4_000_000
    assert headers[b"content-type"] == b"application/json"
    assert max(sizes) < 2**20
    assert [message["more_body"] for message in others] == [True] * (len(others) - 1) + [False]


def test_a_small_response_is_sent_at_once() -> None:
    [_, body] = run(send_response(json_response(numbers(100))))
    assert len(json.loads(body["body"])) == 100
    assert not body.get("more_body")


def test_what_does_not_fit_into_memory_is_a_503_before_anything_is_sent() -> None:
    response = json_response(JsonList(lambda _: "x" * 1000, 1000, 10**6))
    with pytest.raises(HTTPException) as caught:
        run(send_response(response, max_bytes=500_000))
    assert caught.value.status_code == 503


def test_a_value_that_is_not_json_is_an_error() -> None:
    for content in ({"a": object()}, JsonList(lambda _: object(), 1, 1)):
        with pytest.raises(TypeError):
            json_response(content)


@pytest.mark.anyio
async def test_large_responses_are_encoded_one_at_a_time_off_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each of 300 responses had its slice in every turn of the event loop, which was held for seconds."""
    monkeypatch.setattr(sliced, "VALUES_PER_SLICE", 100)
    dump = sliced.dump
    num_running = most = 0
    is_main: set[bool] = set()

    def watch(content: object) -> Any:
        nonlocal num_running, most
        is_list = isinstance(content, list)
        num_running += is_list
        most = max(most, num_running)
        if is_list:
            is_main.add(threading.current_thread() is threading.main_thread())
        encoded = dump(content)
        num_running -= is_list
        return encoded

    async with client_of(build_debug_app()) as client:
        monkeypatch.setattr(sliced, "dump", watch)
        texts = [f"{number}" for number in range(500)]
        responses = await asyncio.gather(*(embed(client, texts) for _ in range(10)))
    assert [response.status_code for response in responses] == [200] * 10
    assert len({response.text.partition('"id"')[0] for response in responses}) == 1
    assert (most, is_main) == (1, {False})
