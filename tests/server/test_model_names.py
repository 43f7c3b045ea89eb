"""Which engine a request reaches, by the name that it gives or by giving none."""

from __future__ import annotations

import time

import httpx
import pytest

from infinity_emb.engine.array import AsyncEngineArray
from infinity_emb.errors import ModelNotNamed, StartupError, UnknownModel
from infinity_emb.types import Capability
from tests.support.tiny_server import build_debug_app, client_of, debug_args, embed

pytestmark = pytest.mark.anyio


def arrays_of(*names: str) -> AsyncEngineArray:
    return AsyncEngineArray.from_args([debug_args(name) for name in names])


@pytest.mark.parametrize("path", ["/embeddings", "/v1/embeddings"])
async def test_an_unknown_model_is_a_404_with_the_names(path: str) -> None:
    """As on OpenAI's servers; 0.0.77 answered 400, which none of its clients tells from 404."""
    async with client_of(build_debug_app(debug_args(), debug_args("second"))) as client:
        response = await client.post(path, json={"input": "a", "model": "other"})
    assert response.status_code == 404
    error = response.json()["error"]
    assert error["message"] == (
        "Invalid model: Engine for model name `other` not found. Available model names are 'debug', 'second'"
    )
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", "model", 404)


@pytest.mark.parametrize("name", ["text-embedding-ada-002", "tei", "other:query", "x" * 512])
async def test_an_only_model_answers_to_every_name_with_one_warning(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As infinity_emb 0.0.77 and text-embeddings-inference do; it was a 400."""
    async with client_of(build_debug_app()) as client:
        for _ in range(3):
            response = await embed(client, model=name)
            assert (response.status_code, response.json()["model"]) == (200, "debug")
        assert (await embed(client, model="another")).status_code == 200
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    [warning] = [text for text in warnings if "--strict-model-names" in text]
    assert "'debug', the only model" in warning
    assert len(warning) < 500


async def test_strict_names_are_refused_also_by_an_only_model() -> None:
    async with client_of(build_debug_app(strict_model_names=True)) as client:
        assert (await embed(client, model="other")).status_code == 404
        assert (await embed(client, model="debug")).status_code == 200
        assert (await embed(client)).status_code == 200


async def test_an_unknown_name_describes_no_model(client: httpx.AsyncClient) -> None:
    """`/models/x` is a question about a name; the answer was, and is, 404."""
    assert (await client.get("/models/other")).status_code == 404


async def test_an_unknown_name_unloads_no_model() -> None:
    """The only model answers requests for any name, but an order to unload it must name it."""
    key = {"Authorization": "Bearer secret"}
    async with client_of(build_debug_app(admin_key="secret")) as client:
        assert (await client.delete("/admin/models/other", headers=key)).status_code == 404
        assert (await client.post("/admin/models/other/reload", headers=key)).status_code == 404
        assert (await embed(client)).status_code == 200


@pytest.mark.parametrize("name", ["Org/Model", "ORG/MODEL", "org/model:latest", "Org/Model:LATEST", "Short"])
@pytest.mark.parametrize("path", ["/v1/embeddings", "/api/embed"])
async def test_names_are_compared_as_ollama_does(name: str, path: str) -> None:
    """`bert:latest` was known to Ollama's routes alone, and `BERT` to none."""
    app = build_debug_app(debug_args("org/model", served_model_aliases=("short",)), debug_args("other"))
    async with client_of(app) as client:
        response = await client.post(path, json={"model": name, "input": "a"})
    assert response.status_code == 200, response.text


def test_the_exact_name_counts_first_and_an_ambiguous_one_is_unknown() -> None:
    array = arrays_of("model", "Model", "tagged:latest", "sized:33m")
    assert array["model"] is array[0]
    assert array["Model"] is array[1]
    assert array["Tagged"] is array[2]
    for name in ("MODEL", "sized", "sized:latest", "model:33m"):
        with pytest.raises(UnknownModel):
            array[name]


def test_a_name_with_an_input_type_may_be_of_another_case() -> None:
    array = arrays_of("model", "other")
    assert array.resolve("Model:query") == (array[0], "query")


@pytest.mark.parametrize("model", ["debug", "short", "default/not-specified", "", None])
async def test_name_alias_and_no_name_reach_the_only_model(model: str | None) -> None:
    app = build_debug_app(debug_args(served_model_aliases=("short",)))
    async with client_of(app) as client:
        response = await embed(client, model=model)
    assert response.status_code == 200
    assert response.json()["model"] == "debug"


async def test_of_several_models_one_must_be_named() -> None:
    app = build_debug_app(debug_args("first/model"), debug_args("second/model"))
    async with client_of(app) as client:
        assert (await embed(client, model="second/model")).json()["model"] == "second/model"
        response = await embed(client)
    assert response.status_code == 400
    assert "first/model" in response.json()["error"]["message"]


# Names with an input type.


@pytest.mark.parametrize("separator", [":", "-"])
@pytest.mark.parametrize("input_type", ["query", "document", "passage"])
@pytest.mark.parametrize("name", ["org/model", "short"])
def test_a_name_may_say_what_the_texts_are(name: str, separator: str, input_type: str) -> None:
    array = AsyncEngineArray.from_args([debug_args("org/model", served_model_aliases=("short",))])
    assert array.resolve(f"{name}{separator}{input_type}") == (array[0], input_type)
    assert array.resolve(name) == (array[0], None)


def test_a_served_name_or_alias_wins_over_a_suffix() -> None:
    array = AsyncEngineArray.from_args(
        [
            debug_args("model"),
            debug_args("model-query"),
            debug_args("c", served_model_aliases=("model:query",)),
        ]
    )
    assert array.resolve("model-query") == (array[1], None)
    assert array.resolve("model:query") == (array[2], None)
    assert array.resolve("model-query:query") == (array[1], "query")
    assert array.resolve("model-query-query") == (array[1], "query")
    assert array.resolve("model-document") == (array[0], "document")


@pytest.mark.parametrize(
    "name", ["other", "other:query", "model:", "model:Query", "modelquery", "model:query:query", ":query", ""]
)
def test_a_name_of_nothing_is_unknown_as_it_was_given(name: str) -> None:
    array = AsyncEngineArray.from_args([debug_args("model", served_model_aliases=("short",))])
    array.accepts_any_name = False
    with pytest.raises(UnknownModel) as caught:
        array.resolve(name)
    assert f"`{name}` not found. Available model names are 'model', 'short'" in str(caught.value)


@pytest.mark.parametrize(
    ("members", "prompt"),
    [
        ({"model": "debug:query"}, "query: "),
        ({"model": "debug-query"}, "query: "),
        ({"model": "debug:document"}, ""),
        ({"model": "debug-passage"}, ""),
        ({"model": "debug"}, ""),
        ({"model": "debug:query", "input_type": "document"}, ""),
        ({"model": "debug:document", "task": "query"}, "query: "),
        ({"model": "debug:query", "input_type": None}, "query: "),
        ({"model": "debug:query", "prompt": "other: "}, "other: "),
    ],
)
async def test_the_suffix_counts_where_the_body_names_no_input_type(
    members: dict[str, str], prompt: str
) -> None:
    async with client_of(build_debug_app(debug_args("debug?kind=embedder"))) as client:
        response = await embed(client, "hello", **members)
    assert response.json()["data"][0]["embedding"] == [len(prompt + "hello")] * 13
    assert response.json()["model"] == "debug"


async def test_an_entry_of_models_has_its_exact_name(client: httpx.AsyncClient) -> None:
    assert (await client.get("/models/debug:query")).status_code == 404


# Requests that name no model.


def kinds(*names: str) -> AsyncEngineArray:
    return AsyncEngineArray.from_args(
        [debug_args(f"{name}?kind={name.rstrip('0123456789')}") for name in names]
    )


@pytest.mark.parametrize(
    ("names", "capability", "chosen"),
    [
        (["embedder", "reranker", "classifier"], "embed", "embedder"),
        (["embedder", "reranker", "classifier"], "rerank", "reranker"),
        (["embedder", "reranker", "classifier"], "classify", "classifier"),
        (["embedder", "sparse"], "embed_sparse", "sparse"),
        (["embedder", "sparse"], "embed", "embedder"),
        (["embedder", "classifier"], "rerank", "embedder"),
        (["embedder", "classifier"], "image_embed", "embedder"),
        (["embedder1", "embedder2", "reranker"], "rerank", "reranker"),
        (["classifier"], "embed", "classifier"),  # an only engine says itself what it cannot
    ],
)
def test_the_model_that_is_made_for_a_task_is_preferred(
    names: list[str], capability: Capability, chosen: str
) -> None:
    array = kinds(*names)
    assert array.default_for(capability) is array[chosen]


@pytest.mark.parametrize(
    ("names", "capability", "listed"),
    [
        (["embedder1", "embedder2"], "embed", ["embedder1", "embedder2"]),
        (["reranker1", "reranker2", "embedder"], "rerank", ["reranker1", "reranker2", "embedder"]),
        (["embedder", "multivector", "reranker"], "image_embed", ["embedder", "multivector"]),
        (["reranker", "classifier"], "embed", ["reranker", "classifier"]),
    ],
)
def test_where_none_or_several_could_be_meant_the_names_are_listed(
    names: list[str], capability: Capability, listed: list[str]
) -> None:
    with pytest.raises(ModelNotNamed) as caught:
        kinds(*names).default_for(capability)
    assert f"set `model` to one of {', '.join(map(repr, listed))}" in str(caught.value)


async def test_each_route_finds_the_model_that_is_made_for_it() -> None:
    names = ["embedder", "reranker", "classifier", "sparse"]
    app = build_debug_app(*(debug_args(f"{name}?kind={name}") for name in names))
    async with client_of(app) as client:
        assert (await embed(client)).json()["model"] == "embedder"
        asked = await embed(client, outputs=["sparse"])
        assert (asked.json()["model"], asked.status_code) == ("sparse", 200)
        ranked = await client.post("/rerank", json={"query": "q", "documents": ["d"]})
        assert ranked.json()["model"] == "reranker"
        assert (await client.post("/classify", json={"input": "a"})).json()["model"] == "classifier"
        before = app.engine_array["sparse"].status().worker.num_items
        assert (await client.post("/embed_sparse", json={"inputs": "a"})).status_code == 200
        assert app.engine_array["sparse"].status().worker.num_items == before + 1


# Long names.


BODIES: dict[str, dict[str, object]] = {
    "/embeddings": {"input": "a"},
    "/v1/embeddings": {"input": "a"},
    "/multi-vector": {"input": "a"},
    "/embed_sparse": {"inputs": "a"},
    "/rerank": {"query": "a", "documents": ["b"]},
    "/classify": {"input": ["a"]},
    "/embed": {"inputs": "a"},
    "/embed_all": {"inputs": "a"},
    "/predict": {"inputs": "a"},
    "/similarity": {"inputs": {"source_sentence": "a", "sentences": ["b"]}},
    "/tokenize": {"inputs": "a"},
    "/decode": {"ids": [1]},
    "/": {"inputs": "a"},
    "/v1/embed": {"texts": ["a"]},
    "/v2/embed": {"texts": ["a"]},
    "/v2/rerank": {"query": "a", "documents": ["b"]},
    "/api/embed": {"input": "a"},
    "/api/embeddings": {"prompt": "a"},
    "/api/show": {},
    "/v1/ranking": {"query": {"text": "a"}, "passages": [{"text": "b"}]},
    "/score": {"text_1": "a", "text_2": "b"},
    "/pooling": {"input": "a"},
}


@pytest.mark.parametrize("path", list(BODIES))
@pytest.mark.parametrize("name", ["x" * 513, "x" + ":latest" * 10**6])
async def test_a_long_name_is_refused_by_every_route(
    path: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Ollama's routes took off one `:latest` after the other, with an exception and a copy for each."""
    async with client_of(build_debug_app(debug_args(), debug_args("other"))) as client:
        started_s = time.monotonic()
        response = await client.post(path, json={"model": name, **BODIES[path]})
        assert time.monotonic() - started_s < 2
    assert response.status_code in (400, 404, 422), response.text[:500]
    assert "model" in response.text
    assert "512" in response.text
    assert len(response.content) < 2000
    assert "x" * 201 not in response.text
    assert sum(len(record.getMessage()) for record in caplog.records) < 2000


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/models/{}"), ("POST", "/models/{}"), ("GET", "/info?model={}"), ("GET", "/{}")],
)
async def test_a_long_name_in_a_path_is_not_repeated(method: str, path: str) -> None:
    async with client_of(build_debug_app(debug_args(), debug_args("other"))) as client:
        response = await client.request(method, path.format("x" * 5000))
    assert response.status_code in (400, 404, 405, 422)
    assert len(response.content) < 2000
    assert "x" * 201 not in response.text


async def test_a_long_field_is_not_repeated(client: httpx.AsyncClient) -> None:
    response = await client.post(
        "/embed_sparse", json={"inputs": [{"x" * 5000: 1}], "model": {"x" * 5000: 1}}
    )
    assert response.status_code == 422
    assert "x" * 201 not in response.text


async def test_one_tag_is_taken_off() -> None:
    async with client_of(build_debug_app(debug_args("name"), debug_args("tagged:latest"))) as client:
        for model, status in {
            "name:latest": 200,
            "tagged:latest": 200,
            "tagged:latest:latest": 200,
            "name:latest:latest": 404,
            "other:latest": 404,
            ":latest": 404,
        }.items():
            response = await client.post("/api/show", json={"model": model})
            assert response.status_code == status, model
            assert (
                await client.post("/api/embed", json={"model": model, "input": "a"})
            ).status_code == status


def test_no_model_is_served_under_a_longer_name() -> None:
    debug_args("x" * 512)
    for wrong in ({"served_model_name": "x" * 513}, {"served_model_aliases": ("a", "x" * 513)}):
        with pytest.raises(StartupError, match="has 513 characters, the limit is 512"):
            debug_args(**wrong)
