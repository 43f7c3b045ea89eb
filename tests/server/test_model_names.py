"""Which engine a request reaches, by the name that it gives or by giving none."""

from __future__ import annotations

import httpx
import pytest

from infinity_emb.engine_array import AsyncEngineArray
from infinity_emb.errors import UnknownModel
from infinity_emb.primitives import Capability
from tests.server.tiny_server import build_debug_app, client_of, debug_args, embed

pytestmark = pytest.mark.anyio


async def test_an_unknown_model_is_refused_with_the_names(client: httpx.AsyncClient) -> None:
    response = await embed(client, model="other")
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["message"] == (
        "Invalid model: Engine for model name `other` not found. Available model names are ['debug']"
    )
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", "model", 400)


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
    with pytest.raises(UnknownModel) as caught:
        array.resolve(name)
    assert f"`{name}` not found. Available model names are ['model', 'short']" in str(caught.value)


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
    assert array.first_with(capability) is array[chosen]


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
    with pytest.raises(UnknownModel) as caught:
        kinds(*names).first_with(capability)
    assert f"give `model` as one of {listed}" in str(caught.value)


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
        before = app.engine_array["sparse"].stats.num_items
        assert (await client.post("/embed_sparse", json={"inputs": "a"})).status_code == 200
        assert app.engine_array["sparse"].stats.num_items == before + 1
