"""The official client against the app, as users have it: nothing of the server is imported by it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import numpy as np
import openai
import pytest

from infinity_emb.server.server_app import ServerApp
from tests.support.tiny_server import build_debug_app, debug_args

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def openai_client_of(app: ServerApp, **options: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app)) as http_client,
    ):
        options = {"api_key": "any", "base_url": "http://test/v1", "max_retries": 0, **options}
        yield openai.AsyncOpenAI(http_client=http_client, **options)


@pytest.mark.parametrize("base_url", ["http://test", "http://test/v1"])
async def test_embeddings_come_as_floats_by_the_base64_that_it_asks_for(base_url: str) -> None:
    async with openai_client_of(build_debug_app(), base_url=base_url) as client:
        answer = await client.embeddings.create(model="debug", input=["hello", "hi"])
    assert [each.embedding for each in answer.data] == [[5.0] * 13, [2.0] * 13]
    assert [each.index for each in answer.data] == [0, 1]
    assert answer.usage.total_tokens == 7
    assert answer.model == "debug"
    assert answer._request_id is not None


async def test_floats_and_dimensions() -> None:
    async with openai_client_of(build_debug_app()) as client:
        answer = await client.embeddings.create(
            model="debug", input="hello", encoding_format="float", dimensions=4, user="me"
        )
    assert answer.data[0].embedding == [0.5] * 4


async def test_models_are_listed_and_retrieved() -> None:
    async with openai_client_of(build_debug_app(debug_args("org/model"))) as client:
        assert [each.id async for each in client.models.list()] == ["org/model"]
        assert (await client.models.retrieve("org/model")).owned_by == "infinity"
        with pytest.raises(openai.NotFoundError, match="org/model"):
            await client.models.retrieve("other")


async def test_errors_reach_the_user_with_their_message() -> None:
    app = build_debug_app(debug_args(), debug_args("second"), max_body_bytes=10_000)
    async with openai_client_of(app) as client:
        with pytest.raises(openai.NotFoundError, match="Available model names") as bad:
            await client.embeddings.create(model="other", input="a")
        assert bad.value.param == "model"
        with pytest.raises(openai.UnprocessableEntityError, match="check_embedding_ctx_length=False"):
            await client.embeddings.create(model="debug", input=[[1, 2, 3]])
        with pytest.raises(openai.APIStatusError, match="more than 10000 bytes") as too_large:
            await client.embeddings.create(model="debug", input="a" * 20_000)
        assert too_large.value.status_code == 413


async def test_the_key() -> None:
    app = build_debug_app(api_key="key")
    async with openai_client_of(app, api_key="key") as client:
        assert len((await client.embeddings.create(model="debug", input="a")).data) == 1
        with pytest.raises(openai.AuthenticationError, match="API key is missing or wrong"):
            await client.with_options(api_key="other").embeddings.create(model="debug", input="a")


@pytest.mark.parametrize(("text", "num_requests"), [("poison", 1), ("wait", 2)])
async def test_the_client_tries_again_what_may_succeed_and_nothing_else(text: str, num_requests: int) -> None:
    """By itself it sends whatever ended in a 500 again."""
    app = build_debug_app(debug_args("debug?fail_on=poison&delay_s=0.3", max_queue_items=1))
    async with openai_client_of(app, max_retries=1) as client:
        sent: list[object] = []
        client._client.event_hooks = {"request": [_noting(sent)]}
        first = asyncio.ensure_future(embed_alone(client, "first")) if text == "wait" else None
        await asyncio.sleep(0.05)
        sent.clear()
        if first is None:
            with pytest.raises(openai.InternalServerError, match="input 0"):
                await embed_alone(client, text)
        else:
            await embed_alone(client, text)
            await first
    assert len(sent) == num_requests


async def embed_alone(client: openai.AsyncOpenAI, text: str) -> None:
    await client.embeddings.create(model="debug", input=text)


def _noting(sent: list[object]) -> Callable[[object], Coroutine[None, None, None]]:
    async def note(request: object) -> None:
        sent.append(request)

    return note


async def test_what_openai_does_not_have_is_sent_as_extra_body() -> None:
    async with openai_client_of(build_debug_app(debug_args("debug?kind=embedder"))) as client:
        answer = await client.embeddings.create(
            model="debug", input="hello", extra_body={"input_type": "query", "truncate": "END"}
        )
        assert answer.data[0].embedding == [12.0] * 13  # 'query: hello'
        answer = await client.embeddings.create(
            model="debug",
            input="hello",
            encoding_format="float",
            extra_body={"outputs": ["dense", "sparse"], "prompt": "x"},
        )
        assert answer.data[0].embedding == [6.0] * 13
        assert answer.data[0].model_extra is not None
        assert answer.data[0].model_extra["sparse_embedding"]["indices"] == sorted(map(ord, set("xhello")))
        answer = await client.embeddings.create(
            model="debug", input=["ab", "cde"], extra_body={"late_chunking": True}
        )
        ranges = [(each.model_extra or {})["late_chunking"]["char_range"] for each in answer.data]
        assert ranges == [[0, 3], [3, 6]]


@pytest.mark.parametrize("model", ["debug:query", "debug-query"])
async def test_a_client_that_can_send_nothing_but_a_name_names_the_side(model: str) -> None:
    async with openai_client_of(build_debug_app(debug_args("debug?kind=embedder"))) as client:
        answer = await client.embeddings.create(model=model, input="hello")
    assert answer.data[0].embedding == [12.0] * 13


async def test_a_late_interaction_model_is_read_by_the_shape() -> None:
    """The client knows flat vectors only; it decodes the base64 that it asks for by itself."""
    async with openai_client_of(build_debug_app(debug_args("debug?kind=multivector"))) as client:
        answer = await client.embeddings.create(model="debug", input="ab")
        [member] = answer.data
        matrix = np.array(member.embedding).reshape((member.model_extra or {})["shape"])
    np.testing.assert_array_equal(matrix, [[97.0] * 13, [98.0] * 13])
