from __future__ import annotations

import base64
from typing import Any

import httpx
import numpy as np
import pytest
from sentence_transformers.util import quantize_embeddings

from infinity_emb.server.dialects.cohere.schemas import CohereEmbedRequest, CohereRerankRequest
from tests.support.tiny_server import build_debug_app, client_of, client_of_kind, debug_args, embed

pytestmark = pytest.mark.anyio

# 4 by 4 pixels.
PIXELS = (
    "iVBORw0KGgoAAAANSUhEUgAAAAQAAAAECAIAAAAmkwkpAAAAFElEQVR4nGOsCNBggAEmBiSAmwMAMDQA+HS6plIAAAAASUVORK5CYII="
)

TEXTS = ["hello", "", "aa"]
# The fake embedder answers 13 times the number of characters, here scaled to length 1.
UNIT = [float(np.float32(1) / np.sqrt(np.float32(13)))] * 13
VECTORS = [UNIT if text else [0.0] * 13 for text in TEXTS]
# As `Client.embed` and `ClientV2.embed` of cohere 5 and 7 send them.
V1_BODY = {"texts": TEXTS, "model": "debug", "input_type": "search_document"}
V2_BODY = {**V1_BODY, "embedding_types": ["float"]}
ALL_TYPES = ["float", "int8", "uint8", "binary", "ubinary", "base64"]
DOCUMENTS = ["aaa", "a", "aaaa", "aa"]


async def test_v1_answers_a_list_of_vectors_where_no_types_are_asked_for(client: httpx.AsyncClient) -> None:
    body = (await client.post("/v1/embed", json=V1_BODY)).json()
    assert isinstance(body.pop("id"), str)
    check_vectors(body.pop("embeddings"))
    tokens = {"input_tokens": 7}
    assert body == {
        "response_type": "embeddings_floats",
        "texts": TEXTS,
        "meta": {"api_version": {"version": "1"}, "billed_units": tokens, "tokens": tokens},
    }


def check_vectors(found: Any, expected: Any = VECTORS) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(("path", "version"), [("/v1/embed", "1"), ("/v2/embed", "2")])
async def test_vectors_stand_under_their_type(client: httpx.AsyncClient, path: str, version: str) -> None:
    # As langchain_cohere has it.
    body = (await client.post(path, json={**V2_BODY, "truncate": None})).json()
    assert body["response_type"] == "embeddings_by_type"
    check_vectors(body["embeddings"].pop("float"))
    assert body["embeddings"] == {}
    assert body["texts"] == TEXTS
    assert body["meta"]["api_version"] == {"version": version}


@pytest.mark.parametrize("types", [None, []])
async def test_v2_answers_floats_by_type_where_no_types_are_asked_for(
    client: httpx.AsyncClient, types: Any
) -> None:
    body = (await client.post("/v2/embed", json={**V1_BODY, "embedding_types": types})).json()
    check_vectors(body["embeddings"]["float"])


async def test_bits_and_base64_are_those_of_the_floats(client: httpx.AsyncClient) -> None:
    types = ["base64", "binary", "ubinary"]
    body = (await client.post("/v2/embed", json={**V2_BODY, "embedding_types": types})).json()
    found = body["embeddings"]
    assert list(found) == types
    decoded = [np.frombuffer(base64.b64decode(each), "<f4").tolist() for each in found["base64"]]
    check_vectors(decoded)
    for kind in ("binary", "ubinary"):
        expected = quantize_embeddings(np.array(VECTORS, np.float32), precision=kind)
        assert found[kind] == [row.tolist() for row in expected]


async def test_every_type_is_answered_and_tokens_are_billed_once(client: httpx.AsyncClient) -> None:
    body = (await client.post("/v2/embed", json={**V2_BODY, "embedding_types": ALL_TYPES})).json()
    assert list(body["embeddings"]) == ALL_TYPES
    assert body["meta"]["billed_units"] == {"input_tokens": 7}
    for kind in ("int8", "uint8"):
        native = (await embed(client, TEXTS, embedding_dtype=kind, normalized=True)).json()
        assert body["embeddings"][kind] == [each["embedding"] for each in native["data"]]


async def test_every_type_comes_from_one_pass() -> None:
    app = build_debug_app()
    async with client_of(app) as client:
        body = {**V2_BODY, "embedding_types": ALL_TYPES}
        await client.post("/v2/embed", json=body)  # finds the ranges
        before = app.engine_array[0].status().worker.num_items
        await client.post("/v2/embed", json={**body, "output_dimension": 4})
        assert app.engine_array[0].status().worker.num_items == before + len(TEXTS)


async def test_shorter_integers_have_ranges_of_their_own(client: httpx.AsyncClient) -> None:
    body = {**V2_BODY, "embedding_types": ["int8"], "output_dimension": 4}
    found = (await client.post("/v2/embed", json=body)).json()["embeddings"]["int8"]
    native = (await embed(client, TEXTS, embedding_dtype="int8", dimensions=4)).json()
    assert found == [each["embedding"] for each in native["data"]]


async def test_floats_are_floats_where_the_model_is_served_with_another_format() -> None:
    async with client_of(build_debug_app(debug_args(embedding_dtype="ubinary"))) as client:
        body = (await client.post("/v1/embed", json=V1_BODY)).json()
    check_vectors(body["embeddings"])


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({"input_type": "search_query"}, "query: hello"),
        ({"model": "debug-query"}, "query: hello"),
        ({"model": "debug-query", "input_type": "search_document"}, "hello"),
        ({"input_type": "clustering"}, "hello"),
    ],
)
async def test_the_input_type_chooses_the_prompt_and_beats_that_of_the_name(
    members: dict[str, str], text: str
) -> None:
    async with client_of_kind("embedder") as client:
        body = (await client.post("/v1/embed", json={"texts": ["hello"], **members})).json()
    assert body["meta"]["tokens"]["input_tokens"] == len(text)


async def test_vectors_are_shortened_to_length_1(client: httpx.AsyncClient) -> None:
    body = (await client.post("/v2/embed", json={**V2_BODY, "output_dimension": 4})).json()
    np.testing.assert_allclose(body["embeddings"]["float"], [[0.5] * 4, [0.0] * 4, [0.5] * 4])


@pytest.mark.parametrize("truncate", ["START", "END", None])
async def test_a_long_text_is_cut_or_refused(client: httpx.AsyncClient, truncate: str | None) -> None:
    long = {**V2_BODY, "texts": ["a" * 9000]}
    body = (await client.post("/v2/embed", json={**long, "truncate": truncate})).json()
    assert body["meta"]["tokens"]["input_tokens"] == 8192
    refused = await client.post("/v2/embed", json={**long, "truncate": "NONE"})
    assert refused.status_code == 400
    assert list(refused.json()) == ["message"]
    assert refused.json()["message"].startswith("input 0 has 9000 tokens")


async def test_null_is_the_same_as_not_given_and_unknown_fields_are_ignored(
    client: httpx.AsyncClient,
) -> None:
    nulls = dict.fromkeys(CohereEmbedRequest.model_fields.keys() - {"texts"})
    response = await client.post("/v1/embed", json={"texts": TEXTS, **nulls, "priority": 3, "max_tokens": 9})
    check_vectors(response.json()["embeddings"])
    async with client_of_kind("reranker") as reranker:
        nulls = dict.fromkeys(CohereRerankRequest.model_fields.keys() - {"query", "documents"})
        body = {"query": "q", "documents": DOCUMENTS, **nulls, "priority": 3}
        assert (await reranker.post("/v2/rerank", json=body)).status_code == 200


async def test_images_are_embedded() -> None:
    pixels = (
        "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAQAAAAECAIAAAAmkwkpAAAAFElEQVR4nGOsCNBggAEmBiSAmwMAMD"
        "QA+HS6plIAAAAASUVORK5CYII="
    )
    request = {"model": "debug", "images": [pixels], "input_type": "image", "embedding_types": ["float"]}
    async with client_of_kind("embedder") as client:
        body = (await client.post("/v2/embed", json=request)).json()
        native = (await embed(client, pixels, modality="image", normalized=True)).json()
    check_vectors(body["embeddings"]["float"], [native["data"][0]["embedding"]])
    assert "texts" not in body


@pytest.mark.parametrize("documents", [DOCUMENTS, [{"text": each} for each in DOCUMENTS]])
async def test_v2_rerank_answers_the_best_first_without_documents(documents: Any) -> None:
    # As langchain_cohere has it.
    request = {"model": "debug", "query": "q", "documents": documents, "top_n": 3, "max_tokens_per_doc": None}
    async with client_of_kind("reranker") as client:
        body = (await client.post("/v2/rerank", json=request)).json()
    assert isinstance(body.pop("id"), str)
    assert body == {
        "results": [
            {"index": 2, "relevance_score": 2.0},
            {"index": 0, "relevance_score": 1.5},
            {"index": 3, "relevance_score": 1.0},
        ],
        "meta": {
            "api_version": {"version": "2"},
            "billed_units": {"search_units": 1},
            "tokens": {"input_tokens": sum(len("q") + 1 + len(DOCUMENTS[i]) for i in range(4))},
        },
    }


async def test_v1_rerank_is_the_servers_own() -> None:
    # As `Client.rerank` sends it.
    request = {
        "query": "q",
        "documents": [{"text": each, "title": "t"} for each in DOCUMENTS],
        "model": "debug",
        "top_n": 1,
        "rank_fields": ["text"],
        "return_documents": True,
        "max_chunks_per_doc": None,
    }
    async with client_of_kind("reranker") as client:
        body = (await client.post("/v1/rerank", json=request)).json()
        without_text = await client.post("/v1/rerank", json={**request, "documents": [{"title": "t"}]})
    document = {"text": "aaaa", "title": "t"}
    assert body["results"] == [{"relevance_score": 2.0, "index": 2, "document": document}]
    assert "objects with a `text`" in without_text.json()["error"]["message"]


@pytest.mark.parametrize(("sdk", "document"), [("cohere", {"text": "aaaa"}), ("other", "aaaa")])
async def test_documents_are_objects_for_coheres_own_clients_also_under_the_prefix_v1(
    sdk: str, document: Any
) -> None:
    """`Client.rerank` of cohere 5 and 7 reads `document.text`, where infinity's clients need a text."""
    request = {"query": "q", "documents": DOCUMENTS, "return_documents": True, "top_n": 1}
    async with client_of_kind("reranker", url_prefix="/v1") as client:
        body = (await client.post("/v1/rerank", json=request, headers={"X-Fern-SDK-Name": sdk})).json()
    assert body["results"] == [{"relevance_score": 2.0, "index": 2, "document": document}]


@pytest.mark.parametrize(
    ("fields", "text"),
    [(["title", "body"], "t\nbb"), (["body", "title"], "bb\nt"), (["body", "none"], "bb"), ([], "text")],
)
async def test_v1_rank_fields_are_read_in_their_order(fields: list[str], text: str) -> None:
    documents = [{"title": "t", "body": "bb", "text": "text"}]
    request = {"query": "q", "documents": documents, "rank_fields": fields, "return_documents": True}
    async with client_of_kind("reranker") as client:
        body = (await client.post("/rerank", json=request)).json()
    assert [each["document"] for each in body["results"]] == [text]


@pytest.mark.parametrize("documents", [[{"title": "t"}], [{"body": 3}], [None]])
async def test_v1_documents_without_the_fields_are_refused(documents: Any) -> None:
    request = {"query": "q", "documents": documents, "rank_fields": ["body"]}
    async with client_of_kind("reranker") as client:
        response = await client.post("/v1/rerank", json=request)
    assert response.status_code == 422
    assert "objects with a `text`" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "request_body", "status", "part"),
    [
        ("/v1/embed", {}, 400, "send either 'texts', 'images' or 'inputs'"),
        ("/v2/embed", {"texts": None}, 400, "send either 'texts', 'images' or 'inputs'"),
        ("/v2/embed", {"texts": ["a"], "images": ["b"]}, 400, "send either 'texts', 'images' or 'inputs'"),
        ("/v2/embed", {"texts": []}, 400, "the list is empty"),
        ("/v2/embed", {"texts": [1]}, 400, "token ids are not accepted"),
        ("/v2/embed", {"texts": ["a"] * 5}, 400, "texts: has 5 items, the limit is 4"),
        ("/v2/embed", {"texts": ["a"], "embedding_types": ["float4"]}, 400, "embedding_types"),
        ("/v2/embed", {"texts": ["a"], "output_dimension": 14}, 400, "between 1 and 13"),
        ("/v2/embed", {"texts": ["a"], "output_dimension": 0}, 400, "between 1 and 13"),
        ("/v2/embed", {"texts": ["a"], "input_type": "nonsense"}, 400, "nonsense"),
        ("/v2/embed", {"images": ["a"]}, 400, "image_embed"),
        ("/v2/embed", {"images": ["a"], "embedding_types": ["float", "int8"]}, 400, "ranges come from texts"),
        ("/v2/rerank", {"query": "q", "documents": ["a"]}, 400, "rerank"),
        ("/v2/rerank", {"query": "q"}, 400, "documents: Field required"),
        ("/v2/rerank", {"query": "q", "documents": ["a"], "top_n": -1}, 400, "top_n"),
    ],
)
async def test_errors_are_a_message(path: str, request_body: Any, status: int, part: str) -> None:
    async with client_of(build_debug_app(max_client_batch_size=4)) as client:
        response = await client.post(path, json=request_body)
    assert (response.status_code, list(response.json())) == (status, ["message"])
    assert part in response.json()["message"]


async def test_a_body_that_is_no_json_is_a_message_too(client: httpx.AsyncClient) -> None:
    response = await client.post("/v2/embed", content=b"{", headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert "not valid JSON" in response.json()["message"]


async def test_of_several_models_the_one_made_for_it_answers_or_one_must_be_named() -> None:
    kinds = ("embedder", "reranker")
    app = build_debug_app(*(debug_args(f"{kind}?kind={kind}") for kind in kinds))
    async with client_of(app) as client:
        assert (await client.post("/v2/embed", json={"texts": ["a"]})).status_code == 200
        ranking = await client.post("/v2/rerank", json={"query": "q", "documents": DOCUMENTS})
        assert ranking.json()["results"][0] == {"index": 2, "relevance_score": 2.0}
    async with client_of(build_debug_app(debug_args("first"), debug_args("second"))) as client:
        response = await client.post("/v1/embed", json={"texts": ["a"]})
    assert response.status_code == 400
    assert "'first', 'second'" in response.json()["message"]


async def test_the_routes_stand_behind_the_prefix_alone() -> None:
    async with client_of(build_debug_app(url_prefix="/api")) as client:
        assert (await client.post("/api/v2/embed", json=V2_BODY)).status_code == 200
        assert (await client.post("/v2/embed", json=V2_BODY)).status_code == 404
        assert (await client.post("/api/v1/v2/embed", json=V2_BODY)).status_code == 404


@pytest.mark.parametrize("path", ["/v1/embed", "/v2/embed"])
async def test_an_unknown_model_is_a_404(path: str) -> None:
    async with client_of(build_debug_app(debug_args("first"), debug_args("second"))) as client:
        response = await client.post(path, json={"texts": ["a"], "model": "embed-v4.0"})
    assert (response.status_code, list(response.json())) == (404, ["message"])


# `inputs` with parts of content, and limits.


def item(**part: Any) -> dict[str, Any]:
    return {"content": [part]}


async def test_inputs_of_one_text_are_texts_and_of_one_image_images() -> None:
    """`inputs` was a 422 that asked for texts."""
    image = "data:image/png;base64," + PIXELS
    async with client_of_kind("embedder") as client:
        texts = await client.post(
            "/v2/embed", json={"inputs": [item(type="text", text=t) for t in ("a", "bc")]}
        )
        plain = await client.post("/v2/embed", json={"texts": ["a", "bc"]})
        parts = [item(type="image_url", image_url={"url": image})]
        images = await client.post("/v2/embed", json={"inputs": parts})
    assert texts.json()["embeddings"] == plain.json()["embeddings"]
    assert texts.json()["texts"] == ["a", "bc"]
    assert images.json()["meta"]["billed_units"]["images"] == 1
    assert texts.json()["meta"]["tokens"] == {"input_tokens": 3}


@pytest.mark.parametrize(
    "inputs",
    [
        [],
        "a",
        [{}],
        ["a"],
        [{"content": []}],
        [{"content": "a"}],
        [{"content": [{"text": "a"}, {"text": "b"}]}],
        [item(text="a"), item(image_url={"url": "data:,"})],
        [item(image_url="data:,")],
        [item(text=3)],
    ],
)
async def test_other_inputs_are_refused_by_name(inputs: Any) -> None:
    async with client_of_kind("embedder") as client:
        response = await client.post("/v2/embed", json={"inputs": inputs})
    assert response.status_code == 400
    assert response.json()["message"].startswith("inputs: ")


async def test_texts_are_cut_to_the_limit_of_the_request() -> None:
    """`max_tokens` was ignored: 102 tokens were read where 16 were allowed."""
    async with client_of_kind("embedder") as client:
        cut = await client.post("/v2/embed", json={"texts": ["a" * 50], "max_tokens": 16})
        refused = await client.post(
            "/v2/embed", json={"texts": ["a" * 50], "max_tokens": 16, "truncate": "NONE"}
        )
        wrong = await client.post("/v2/embed", json={"texts": ["a"], "max_tokens": 0})
    assert cut.json()["meta"]["billed_units"]["input_tokens"] == 16
    assert (refused.status_code, wrong.status_code) == (400, 400)
