"""Requests as `openai.AzureOpenAI` sends them, and as `openai.OpenAI` sends them to Azure's `/openai/v1`."""

from __future__ import annotations

import httpx2
import pytest
from openai import AsyncAzureOpenAI, AsyncOpenAI, AuthenticationError

from tests.support.tiny_server import build_debug_app, client_of, debug_args

pytestmark = pytest.mark.anyio

VERSION = {"api-version": "2024-10-21"}


@pytest.mark.parametrize("name", ["second", "org/first", "Second", "short"])
@pytest.mark.parametrize("model", [None, "ignored"])
async def test_the_deployment_is_the_model(name: str, model: str | None) -> None:
    app = build_debug_app(debug_args("org/first", served_model_aliases=("short",)), debug_args("second"))
    path = f"/openai/deployments/{name}/embeddings"
    async with client_of(app) as client:
        response = await client.post(path, params=VERSION, json={"input": "abc", "model": model})
    assert response.status_code == 200, response.text
    assert response.json()["model"] == {"Second": "second", "short": "org/first"}.get(name, name)
    assert response.json()["usage"]["total_tokens"] == 3


async def test_an_unknown_deployment_is_a_404_of_openai() -> None:
    app = build_debug_app(debug_args("first"), debug_args("second"))
    async with client_of(app) as client:
        response = await client.post("/openai/deployments/x/embeddings", json={"input": "a"})
        long = await client.post(f"/openai/deployments/{'x' * 5000}/embeddings", json={"input": "a"})
    assert (response.status_code, response.json()["error"]["param"]) == (404, "model")
    assert (long.status_code, "512" in long.text, "x" * 201 in long.text) == (404, True, False)


async def test_the_key_of_azure_is_checked() -> None:
    path = "/openai/deployments/debug/embeddings"
    async with client_of(build_debug_app(api_key=["secret"])) as client:
        assert (await client.post(path, json={"input": "a"})).status_code == 401
        response = await client.post(path, json={"input": "a"}, headers={"api-key": "secret"})
    assert response.status_code == 200


@pytest.mark.parametrize("model", ["org/first", "second"])
async def test_azures_api_without_a_version_is_openais(model: str) -> None:
    """`/openai/v1` was a 404."""
    app = build_debug_app(debug_args("org/first"), debug_args("second"), api_key=["secret"])
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app)) as http_client,
    ):
        client = AsyncOpenAI(base_url="http://test/openai/v1/", api_key="secret", http_client=http_client)
        answer = await client.embeddings.create(model=model, input=["abc", "a"])
        listed = [each.id async for each in client.models.list()]
        assert (await client.models.retrieve(model)).id == model
        with pytest.raises(AuthenticationError):
            await client.with_options(api_key="wrong").models.list()
    assert (answer.model, [each.embedding[0] for each in answer.data]) == (model, [3.0, 1.0])
    assert listed == ["org/first", "second"]


async def test_azures_client_lists_and_uses_the_models() -> None:
    app = build_debug_app(debug_args("org/first"), debug_args("second"))
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app)) as http_client,
    ):
        client = AsyncAzureOpenAI(
            azure_endpoint="http://test", api_key="any", api_version="2024-10-21", http_client=http_client
        )
        assert [each.id async for each in client.models.list()] == ["org/first", "second"]
        assert (await client.models.retrieve("org/first")).id == "org/first"
        answer = await client.embeddings.create(model="second", input="abc")
        assert (answer.model, answer.data[0].embedding[0]) == ("second", 3.0)
