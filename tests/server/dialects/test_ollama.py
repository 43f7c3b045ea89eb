from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pytest

from infinity_emb._version import __version__
from infinity_emb.server.dialects.ollama.schemas import (
    OllamaEmbedRequest,
    OllamaPromptRequest,
    OllamaRunning,
    OllamaShow,
    OllamaTags,
)
from tests.support.tiny_server import build_debug_app, client_of, client_of_kind, debug_args

pytestmark = pytest.mark.anyio

# The fake embedder answers 13 times the number of characters, which is not of length 1.
UNIT = (np.ones(13) / np.sqrt(13)).tolist()


async def embed(client: httpx.AsyncClient, texts: Any = "hello", **members: Any) -> httpx.Response:
    return await client.post("/api/embed", json={"model": "debug", "input": texts, **members})


async def test_vectors_have_length_1_and_an_empty_text_is_0(client: httpx.AsyncClient) -> None:
    # As `ollama.Client.embed` sends it.
    request = {"model": "debug", "input": ["hello", "a", ""], "truncate": None, "options": {"num_ctx": 9}}
    body = (await client.post("/api/embed", json={**request, "keep_alive": "5m"})).json()
    np.testing.assert_allclose(body["embeddings"], [UNIT, UNIT, [0.0] * 13], rtol=1e-6)
    assert list(body) == ["model", "embeddings", "total_duration", "load_duration", "prompt_eval_count"]
    assert (body["model"], body["load_duration"], body["prompt_eval_count"]) == ("debug", 0, 6)
    assert 0 < body["total_duration"] < 60 * 10**9


async def test_one_text_is_a_list_of_one(client: httpx.AsyncClient) -> None:
    np.testing.assert_allclose((await embed(client)).json()["embeddings"], [UNIT], rtol=1e-6)


@pytest.mark.parametrize("nothing", ["", [], None])
async def test_nothing_is_answered_by_nothing(client: httpx.AsyncClient, nothing: Any) -> None:
    body = (await embed(client, nothing)).json()
    assert (body["embeddings"], body["prompt_eval_count"]) == ([], 0)
    assert (await client.post("/api/embed", json={"model": "debug"})).json()["embeddings"] == []
    older = await client.post("/api/embeddings", json={"model": "debug", "prompt": ""})
    assert older.json() == {"embedding": []}


async def test_shorter_vectors_have_length_1_too(client: httpx.AsyncClient) -> None:
    short = (await embed(client, dimensions=4)).json()["embeddings"]
    np.testing.assert_allclose(short, [[0.5] * 4], rtol=1e-6)
    np.testing.assert_allclose((await embed(client, dimensions=0)).json()["embeddings"], [UNIT], rtol=1e-6)


async def test_the_older_route_answers_one_vector(client: httpx.AsyncClient) -> None:
    body = (await client.post("/api/embeddings", json={"model": "debug", "prompt": "hello"})).json()
    assert list(body) == ["embedding"]
    np.testing.assert_allclose(body["embedding"], UNIT, rtol=1e-6)


async def test_vectors_are_floats_where_the_model_is_served_with_another_format() -> None:
    async with client_of(build_debug_app(debug_args(embedding_dtype="ubinary"))) as client:
        np.testing.assert_allclose((await embed(client)).json()["embeddings"], [UNIT], rtol=1e-6)


async def test_a_long_text_is_cut_or_refused(client: httpx.AsyncClient) -> None:
    assert (await embed(client, "a" * 9000)).json()["prompt_eval_count"] == 8192
    assert (await embed(client, "a" * 9000, truncate=True)).status_code == 200
    refused = await embed(client, ["a", "a" * 9000], truncate=False)
    assert refused.status_code == 400
    assert refused.json()["error"].startswith("input 1 has 9000 tokens")


async def test_the_tag_that_clients_add_is_not_part_of_the_name(client: httpx.AsyncClient) -> None:
    assert (await embed(client, model="debug:latest")).json()["model"] == "debug:latest"
    async with client_of_kind("embedder") as embedder:
        assert (await embed(embedder, "a", model="debug:query")).json()["prompt_eval_count"] == len(
            "query: a"
        )
    async with client_of(build_debug_app(debug_args("debug:latest"), debug_args("debug"))) as both:
        assert (await embed(both, model="debug:latest")).status_code == 200


@pytest.mark.parametrize("name", ["nomic-embed-text", "nomic-embed-text:latest", "debug:latest:latest:x"])
@pytest.mark.parametrize("path", ["/api/embed", "/api/embeddings"])
async def test_an_unknown_model_is_a_404_in_the_words_of_ollama(path: str, name: str) -> None:
    """Clients such as Chroma's look for them."""
    async with client_of(build_debug_app(debug_args(), debug_args("second"))) as client:
        response = await client.post(path, json={"model": name, "input": "a", "prompt": "a"})
    assert (response.status_code, list(response.json())) == (404, ["error"])
    assert f'model "{name}" not found' in response.json()["error"]
    assert "'debug', 'second'" in response.json()["error"]


async def test_an_only_model_answers_to_every_name_and_gives_its_own(client: httpx.AsyncClient) -> None:
    response = await embed(client, model="nomic-embed-text")
    assert (response.status_code, response.json()["model"]) == (200, "debug")


@pytest.mark.parametrize(
    ("path", "body", "status", "part"),
    [
        ("/api/embed", {"input": 3}, 400, "must be a text or a list of texts"),
        ("/api/embed", {"input": [[1, 2]]}, 400, "token ids are not accepted"),
        ("/api/embed", {"input": ["a"] * 5}, 400, "has 5 items, the limit is 4"),
        ("/api/embed", {"input": "a", "dimensions": 14}, 400, "between 1 and 13"),
        ("/api/embed", {"input": "a", "truncate": "maybe"}, 400, "truncate"),
        ("/api/embeddings", {"prompt": ["a"]}, 400, "prompt: "),
    ],
)
async def test_errors_are_a_text(path: str, body: Any, status: int, part: str) -> None:
    async with client_of(build_debug_app(max_client_batch_size=4)) as client:
        response = await client.post(path, json=body)
    assert (response.status_code, list(response.json())) == (status, ["error"])
    assert part in response.json()["error"]


async def test_a_vector_that_is_not_a_number_fails_the_request() -> None:
    async with client_of(build_debug_app(debug_args("debug?nan_on=nan"))) as client:
        response = await embed(client, ["a", "nan"])
    assert (response.status_code, list(response.json())) == (500, ["error"])


@pytest.mark.parametrize("path", ["/api/embed", "/api/embeddings"])
async def test_null_is_the_same_as_not_given(client: httpx.AsyncClient, path: str) -> None:
    schema = OllamaEmbedRequest if path == "/api/embed" else OllamaPromptRequest
    nulls = dict.fromkeys([*schema.model_fields, "options", "keep_alive"])
    assert (await client.post(path, json=nulls)).status_code == 200
    given = await client.post(path, json={**nulls, "input": "a", "prompt": "a"})
    vectors = given.json().get("embeddings") or [given.json()["embedding"]]
    np.testing.assert_allclose(vectors, [UNIT], rtol=1e-6)


async def test_tags_and_ps_list_every_name_with_a_tag() -> None:
    """LangChain's client refuses to start with a name, such as an alias, that is not in the list."""
    app = build_debug_app(
        debug_args("org/first", served_model_aliases=("short",)),
        debug_args("second?kind=reranker", served_model_name="second:33m", served_model_aliases=("other",)),
    )
    async with client_of(app) as client:
        response = await client.get("/api/tags")
        in_memory = await client.get("/api/ps")
        unnamed = await client.post("/api/embed", json={"input": "a"})
    tags = OllamaTags.model_validate_json(response.content, strict=True)
    names = ["org/first:latest", "short:latest", "second:33m", "other:latest"]
    assert [(each.name, each.model) for each in tags.models] == [(name, name) for name in names]
    assert tags.models[2].details.family == "reranker"
    running = OllamaRunning.model_validate_json(in_memory.content, strict=True)
    assert [each.name for each in running.models] == names
    assert unnamed.json()["model"] == "org/first"


async def test_of_several_embedders_one_must_be_named() -> None:
    async with client_of(build_debug_app(debug_args("first"), debug_args("second"))) as client:
        response = await client.post("/api/embed", json={"input": "a"})
        assert (await embed(client, model="second")).status_code == 200
    assert "'first', 'second'" in response.json()["error"]


async def test_the_routes_stand_behind_the_prefix_alone() -> None:
    async with client_of(build_debug_app(url_prefix="/x")) as client:
        assert (await client.post("/x/api/embed", json={"input": "a"})).status_code == 200
        assert (await client.get("/x/api/tags")).status_code == 200
        assert (await client.post("/api/embed", json={"input": "a"})).status_code == 404


@pytest.mark.parametrize("name", ["debug", "debug:latest", "debug:query", None])
async def test_show_tells_what_is_known_of_one_model(name: str | None) -> None:
    async with client_of_kind("embedder") as client:
        response = await client.post("/api/show", json={"model": name, "verbose": True})
    shown = OllamaShow.model_validate_json(response.content, strict=True)
    assert shown.capabilities == ["embedding"]
    assert shown.model_info == {
        "general.architecture": "embedder",
        "embedder.embedding_length": 13,
        "embedder.context_length": 8192,
    }


async def test_show_of_a_model_that_is_not_served_is_a_404(client: httpx.AsyncClient) -> None:
    response = await client.post("/api/show", json={"model": "nomic-embed-text"})
    assert (response.status_code, list(response.json())) == (404, ["error"])


async def test_a_reranker_is_shown_without_what_it_has_not() -> None:
    async with client_of_kind("reranker") as client:
        shown = (await client.post("/api/show", json={"model": "debug"})).json()
    assert shown["capabilities"] == []
    assert "reranker.embedding_length" not in shown["model_info"]


async def test_the_version_is_the_servers_own(client: httpx.AsyncClient) -> None:
    assert (await client.get("/api/version")).json() == {"version": __version__}


@pytest.mark.parametrize("body", [{"name": "second"}, {"model": "second"}, {"name": "SECOND:latest"}])
async def test_older_clients_name_the_model_with_another_field(body: dict[str, str]) -> None:
    """`{"name": ...}` was read as a request that names no model: 404 where there are two."""
    async with client_of(build_debug_app(debug_args(), debug_args("second?kind=reranker"))) as client:
        shown = await client.post("/api/show", json=body)
        pulled = await client.post("/api/pull", json=body)
    assert shown.json()["details"]["family"] == "reranker"
    assert pulled.json() == {"status": "success"}


async def test_a_model_that_is_not_served_cannot_be_pulled(client: httpx.AsyncClient) -> None:
    response = await client.post("/api/pull", json={"model": "nomic-embed-text"})
    assert (response.status_code, list(response.json())) == (404, ["error"])
    assert 'model "nomic-embed-text" not found' in response.json()["error"]


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/api/embed", b'{"model": "debug", "input": "a"}'),
        ("/api/embeddings", b'{"model": "debug", "prompt": "a"}'),
        ("/api/show", b'{"name": "debug"}'),
        ("/api/pull", b'{"name": "debug"}'),
    ],
)
@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "text/plain", ""])
async def test_the_content_type_is_not_read(
    client: httpx.AsyncClient, path: str, content: bytes, content_type: str
) -> None:
    """`curl -d`, as in Ollama's documentation, sends that of a form, which was a 415."""
    response = await client.post(path, content=content, headers={"content-type": content_type})
    assert response.status_code == 200, response.text


async def test_each_route_reads_the_field_of_the_other(client: httpx.AsyncClient) -> None:
    """`prompt` at /api/embed was ignored, and the response was 200 without a vector."""
    new = (await client.post("/api/embed", json={"prompt": "hello"})).json()
    old = (await client.post("/api/embeddings", json={"input": "hello"})).json()
    np.testing.assert_allclose(new["embeddings"], [old["embedding"]])
    np.testing.assert_allclose(old["embedding"], UNIT, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "num_tokens"), [({"num_ctx": 3}, 3), ({"seed": 1}, 5), ({}, 5), (None, 5)]
)
async def test_the_size_of_the_context_limits_the_text(
    client: httpx.AsyncClient, options: Any, num_tokens: int
) -> None:
    """It was ignored."""
    assert (await embed(client, options=options)).json()["prompt_eval_count"] == num_tokens
    if num_tokens == 3:
        assert (await embed(client, options=options, truncate=False)).status_code == 400


@pytest.mark.parametrize("value", [True, False])
async def test_true_is_no_size_of_a_context(client: httpx.AsyncClient, value: bool) -> None:
    """It was read as 1, and texts were cut to one token."""
    response = await embed(client, options={"num_ctx": value})
    assert (response.status_code, list(response.json())) == (400, ["error"])
    assert "must be a number" in response.json()["error"]


@pytest.mark.parametrize("task", ["generate", "chat"])
async def test_what_embedding_models_do_not_do_is_refused_in_the_words_of_ollama(
    client: httpx.AsyncClient, task: str
) -> None:
    """It was a 404 whose `error` was an object, which clients show as [object Object]."""
    body = {"model": "debug:latest", "prompt": "a", "messages": [{"role": "user", "content": "a"}]}
    response = await client.post(f"/api/{task}", json=body)
    assert response.status_code == 400
    assert response.json() == {"error": f'"debug:latest" does not support {task}'}
    unknown = await client.post(f"/api/{task}", content=b'{"model": "llama3"}')
    assert unknown.status_code == 404
    assert 'model "llama3" not found' in unknown.json()["error"]
