"""Requests as clients of Text Embeddings Inference send them, member by member."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter

from infinity_emb._version import __version__
from infinity_emb.server.dialects.tei.errors import TeiError
from infinity_emb.server.dialects.tei.info import TeiInfo
from infinity_emb.server.dialects.tei.schemas import (
    TeiAnyRequest,
    TeiEmbedRequest,
    TeiPredictRequest,
    TeiRanked,
    TeiRerankRequest,
    TeiSimilarityRequest,
)
from infinity_emb.server.dialects.tei.token_schemas import (
    TeiDecodeRequest,
    TeiEmbedAllRequest,
    TeiTokenizeRequest,
)
from infinity_emb.server.requests import json_body
from tests.server.test_arbitrary_requests import anything
from tests.support.tiny_server import build_debug_app, client_of, client_of_kind, debug_args

pytestmark = pytest.mark.anyio

PLAIN = {"content-type": "text/plain"}
KINDS = ("embedder", "reranker", "classifier")
SENTENCES = {"source_sentence": "abc", "sentences": ["a", "", "abcd"]}
RANKED = [{"index": 1, "score": 1.5}, {"index": 0, "score": 0.5}]
LABELS = [{"score": 1.5, "label": "characters"}, {"score": 0.0, "label": "none"}]


@pytest.fixture
async def several(anyio_backend: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server of three models, each of a kind and of its name."""
    async with client_of(build_debug_app(*(debug_args(f"{kind}?kind={kind}") for kind in KINDS))) as client:
        yield client


def normalize(*lengths: int, num_values: int = 13) -> np.ndarray[Any, Any]:
    """What the fake's vectors, the length of the text in every value, are when scaled to length 1."""
    rows = np.repeat(np.array(lengths, dtype=np.float64)[:, None], num_values, axis=1)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)


def check_error(response: httpx.Response, status: int, kind: str, part: str) -> None:
    assert response.status_code == status, response.text
    assert TeiError.model_validate_json(response.content, strict=True).error_type == kind
    assert list(response.json()) == ["error", "error_type"]
    assert part in response.json()["error"]


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": ["ab", "abcd"]},  # chromadb, litellm
        {"inputs": ["ab", "abcd"], "truncate": True},  # llama-index
        {"inputs": ["ab", "abcd"], "normalize": True, "truncate": True},  # huggingface_hub
        {"inputs": ["ab", "abcd"], "prompt_name": None, "truncation_direction": "Right", "dimensions": None},
        {"inputs": ["ab", "abcd"], "parameters": {}, "unknown": [1, {"a": None}]},
    ],
)
@pytest.mark.parametrize("path", ["/embed", "/"])
async def test_embed_answers_a_list_of_vectors_of_length_1(body: dict[str, Any], path: str) -> None:
    async with client_of_kind("embedder") as client:
        response = await client.post(path, json=body)
    assert response.status_code == 200
    np.testing.assert_allclose(response.json(), normalize(2, 4), atol=1e-6)


async def test_one_text_is_a_list_of_one_vector(client: httpx.AsyncClient) -> None:
    rows = (await client.post("/embed", json={"inputs": "abc"})).json()
    np.testing.assert_allclose(rows, normalize(3), atol=1e-6)


async def test_vectors_are_the_models_own_where_they_shall_not_be_normalized(
    client: httpx.AsyncClient,
) -> None:
    body = {"inputs": ["ab", ""], "normalize": False}
    assert (await client.post("/embed", json=body)).json() == [[2.0] * 13, [0.0] * 13]
    cut = (await client.post("/embed", json={**body, "dimensions": 3})).json()
    assert cut == [[2.0] * 3, [0.0] * 3]


async def test_fewer_dimensions_are_cut_and_then_normalized(client: httpx.AsyncClient) -> None:
    rows = (await client.post("/embed", json={"inputs": ["ab", ""], "dimensions": 4})).json()
    np.testing.assert_allclose(rows, normalize(2, 0, num_values=4), atol=1e-6)


async def test_vectors_are_floats_whatever_the_model_is_served_with() -> None:
    app = build_debug_app(debug_args(embedding_dtype="binary"))
    async with client_of(app) as client:
        response = await client.post("/embed", json={"inputs": "ab", "normalize": False})
    assert response.json() == [[2.0] * 13]


async def test_prompts_and_sides_count() -> None:
    async with client_of_kind("embedder") as client:

        async def length_of(text: str, **members: Any) -> float:
            body = {"inputs": text, "normalize": False, **members}
            value: float = (await client.post("/embed", json=body)).json()[0][0]
            return value

        assert await length_of("ab", prompt_name="query") == len("query: ab")
        assert await length_of("ab", model="debug:query") == len("query: ab")
        assert await length_of("a" * 9000, truncate=True, truncation_direction="Left") == 8192


@pytest.mark.parametrize(
    ("inputs", "lengths"),
    [("abc", None), (["abc"], None), (["a", "c"], None), ([["abc"]], [3]), ([["a"], ["ab", "c"]], [1, 4])],
)
@pytest.mark.parametrize("path", ["/predict", "/"])
async def test_predict_tells_one_input_from_a_batch(
    inputs: Any, lengths: list[int] | None, path: str
) -> None:
    async with client_of_kind("classifier") as client:
        raw = (await client.post(path, json={"inputs": inputs, "raw_scores": True})).json()
        answer = (await client.post(path, json={"inputs": inputs, "parameters": {}})).json()
    if lengths is None:
        assert answer == LABELS  # each of them is three characters, a pair's separator among them
        assert raw[0] == {"score": 3.0, "label": "characters"}
    else:
        assert [labels[0]["score"] for labels in raw] == lengths
        assert [labels[0]["score"] for labels in answer] == [length / 2 for length in lengths]


@pytest.mark.parametrize("parameters", [{}, None, {"truncate": True, "truncation_direction": "Right"}])
@pytest.mark.parametrize("path", ["/similarity", "/"])
async def test_similarity_is_the_cosine_with_the_source_sentence(parameters: Any, path: str) -> None:
    async with client_of_kind("embedder") as client:
        response = await client.post(path, json={"inputs": SENTENCES, "parameters": parameters})
    np.testing.assert_allclose(response.json(), [1.0, 0.0, 1.0], atol=1e-6)


async def test_an_error_about_a_sentence_names_it_by_its_place(client: httpx.AsyncClient) -> None:
    inputs = {"source_sentence": "a", "sentences": ["a", "a" * 9000]}
    body = {"inputs": inputs, "parameters": {"truncate": False}}
    check_error(await client.post("/similarity", json=body), 422, "Validation", "input 1 has 9000 tokens")


@pytest.mark.parametrize(
    "members",
    [
        {},  # llama-index
        {"raw_scores": False},  # haystack
        {
            "truncate": True,
            "truncation_direction": "Right",
            "return_text": False,
            "raw_scores": False,
        },  # litellm
        {"truncate": None, "truncation_direction": None, "return_text": None, "top_n": None},
    ],
)
@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/"])
async def test_texts_instead_of_documents_are_answered_with_a_bare_list(
    several: httpx.AsyncClient, path: str, members: dict[str, Any]
) -> None:
    response = await several.post(path, json={"query": "q", "texts": ["a", "aaa"], **members})
    assert response.json() == RANKED


async def test_rerank_answers_raw_scores_texts_and_the_best_where_asked() -> None:
    body = {"query": "q", "texts": ["a", "aaa"]}
    async with client_of_kind("reranker") as client:
        raw = (await client.post("/rerank", json={**body, "raw_scores": True})).json()
        texts = (await client.post("/rerank", json={**body, "return_text": True, "top_n": 1})).json()
    assert [each["score"] for each in raw] == [3.0, 1.0]
    assert texts == [{"index": 1, "text": "aaa", "score": 1.5}]
    assert TypeAdapter(list[TeiRanked]).validate_python(texts, strict=True)


async def test_documents_are_answered_as_ever(several: httpx.AsyncClient) -> None:
    ours = {"query": "q", "documents": ["a"]}
    assert len((await several.post("/rerank", json=ours)).json()["results"]) == 1
    missing = (await several.post("/rerank", json={"query": "q"})).json()
    assert missing["error"]["param"] == "documents"


async def test_each_route_picks_the_only_model_made_for_it(several: httpx.AsyncClient) -> None:
    embedded = await several.post("/embed", json={"inputs": "ab"})
    predicted = await several.post("/predict", json={"inputs": "abc"})
    similar = await several.post("/similarity", json={"inputs": SENTENCES})
    assert (len(embedded.json()), predicted.json(), len(similar.json())) == (1, LABELS, 3)


async def test_the_bare_address_says_which_models_it_could_mean(several: httpx.AsyncClient) -> None:
    refused = await several.post("/", json={"inputs": "ab"})
    check_error(refused, 422, "Validation", "set `model` to one of 'embedder', 'classifier'")
    named = await several.post("/", json={"inputs": "abc", "model": "classifier"})
    assert named.json() == LABELS


async def test_the_bare_address_of_an_embedder_and_a_reranker_embeds() -> None:
    app = build_debug_app(*(debug_args(f"{kind}?kind={kind}") for kind in ("embedder", "reranker")))
    async with client_of(app) as client:
        assert len((await client.post("/", json={"inputs": ["a", "b"]})).json()) == 2


@pytest.mark.parametrize("is_large", [False, True])
async def test_large_bodies_of_any_task_are_validated_off_the_event_loop(
    is_large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small ones once waited for threads that read and write files."""
    names: list[str] = []
    fit_schema = json_body.fit_schema

    def note(schema: Any, fields: Any) -> Any:
        names.append(threading.current_thread().name)
        return fit_schema(schema, fields)

    monkeypatch.setattr(json_body, "fit_schema", note)
    text = "a" * json_body.MIN_THREADED_BYTES if is_large else "a"
    async with client_of_kind("embedder") as client:
        assert (await client.post("/", json={"inputs": [text], "truncate": True})).status_code == 200
    assert len(names) == 2
    is_inline = [name == threading.main_thread().name for name in names]
    assert is_inline == [not is_large] * 2
    assert not any(name.startswith("asyncio") for name in names)


async def test_the_bare_address_of_a_sparse_model_answers_sparse_vectors() -> None:
    async with client_of_kind("sparse") as client:
        assert (await client.post("/", json={"inputs": "a"})).json() == [[{"index": 97, "value": 1.0}]]


async def test_the_bare_address_of_a_reranker_asks_for_texts() -> None:
    async with client_of_kind("reranker") as client:
        check_error(await client.post("/", json={"inputs": "a"}), 422, "Validation", "texts: Field required")


@pytest.mark.parametrize(
    ("kind", "model_type"),
    [
        ("embedder", {"embedding": {"pooling": "mean"}}),
        ("sparse", {"embedding": {"pooling": "splade"}}),
        ("reranker", {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}}),
        (
            "classifier",
            {
                "classifier": {
                    "id2label": {"0": "characters", "1": "none"},
                    "label2id": {"characters": 0, "none": 1},
                }
            },
        ),
    ],
)
async def test_info_tells_the_kind_of_the_model(kind: str, model_type: dict[str, Any]) -> None:
    async with client_of_kind(kind, max_client_batch_size=7) as client:
        response = await client.get("/info")
    assert list(response.json()) == list(TeiInfo.model_fields)
    info = TeiInfo.model_validate_json(response.content, strict=True)
    assert info.model_type == model_type
    assert (info.served_model_name, info.model_dtype) == ("debug", "float32")
    assert (info.max_input_length, info.max_client_batch_size) == (8192, 7)
    assert info.version == __version__


async def test_info_of_several_models_wants_a_name(several: httpx.AsyncClient) -> None:
    check_error(await several.get("/info"), 422, "Validation", "set `model` to one of 'embedder'")
    check_error(await several.get("/info?model=other"), 422, "Validation", "other")
    assert (await several.get("/info?model=reranker")).json()["served_model_name"] == "reranker"


@pytest.mark.parametrize("path", ["/embed", "/predict", "/similarity", "/rerank", "/", "/info"])
async def test_all_stand_at_the_prefix_and_behind_the_key(path: str) -> None:
    body: dict[str, Any] = {"inputs": SENTENCES if path in ("/", "/similarity") else "abc", "query": "q"}
    if path == "/rerank":
        body = {"query": "q", "texts": ["a"]}
    models = [debug_args(f"{kind}?kind={kind}") for kind in KINDS]
    method = "GET" if path == "/info" else "POST"
    query = "?model=embedder" if path == "/info" else ""
    for prefix in ("", "/api"):
        app = build_debug_app(*models, url_prefix=prefix, api_key="key")
        url = (prefix + path).rstrip("/") or "/"
        async with client_of(app) as client:
            refused = await client.request(method, url + query, json=body)
            response = await client.request(
                method, url + query, json=body, headers={"authorization": "Bearer key"}
            )
        assert refused.status_code == 401
        assert response.status_code == 200, response.text


async def test_reading_the_root_still_leads_to_a_page(client: httpx.AsyncClient) -> None:
    assert (await client.get("/")).headers["location"] == "/ui"


REQUESTS: list[tuple[str, type[BaseModel], dict[str, Any]]] = [
    ("/embed", TeiEmbedRequest, {"inputs": "a"}),
    ("/predict", TeiPredictRequest, {"inputs": "a"}),
    ("/similarity", TeiSimilarityRequest, {"inputs": SENTENCES}),
    ("/rerank", TeiRerankRequest, {"query": "q", "texts": ["a", "b"]}),
    ("/", TeiAnyRequest, {"inputs": SENTENCES}),
    ("/embed_all", TeiEmbedAllRequest, {"inputs": "a"}),
    ("/tokenize", TeiTokenizeRequest, {"inputs": "a"}),
    ("/decode", TeiDecodeRequest, {"ids": [97]}),
]
MEMBERS = [(place, name) for place, each in enumerate(REQUESTS) for name in each[1].model_fields]


@pytest.mark.parametrize(("path", "schema", "required"), REQUESTS)
async def test_null_is_the_same_as_not_given(
    several: httpx.AsyncClient, path: str, schema: type[BaseModel], required: dict[str, Any]
) -> None:
    nulls = await several.post(path, json={**dict.fromkeys(schema.model_fields), **required})
    assert nulls.status_code == 200
    assert nulls.json() == (await several.post(path, json=required)).json()


@pytest.mark.parametrize(
    ("path", "body", "part"),
    [
        ("/embed", {}, "inputs: Field required"),
        ("/embed", {"inputs": ["a", [0x110000]]}, "input 1 has the token id 1114112"),
        ("/embed", {"inputs": [-1]}, "input 0 has the token id -1"),
        ("/embed", {"inputs": ["a"] * 4}, "has 4 items, the limit is 3"),
        ("/embed", {"inputs": "a", "dimensions": 0}, "Select between 1 and 13"),
        ("/embed", {"inputs": "a", "dimensions": 14}, "Select between 1 and 13"),
        ("/embed", {"inputs": "a", "prompt_name": "other"}, "other"),
        ("/embed", {"inputs": "a", "truncation_direction": "Up"}, "'left' or 'right'"),
        ("/embed", {"inputs": ["a", "a" * 9000], "truncate": False}, "input 1 has 9000 tokens"),
        ("/predict", {"inputs": [["a"], ["a", "b", "c"]]}, "item 1 is a list"),
        ("/predict", {"inputs": [["a"], []]}, "item 1 is a list"),
        ("/predict", {"inputs": 3}, "not a number"),
        ("/predict", {"inputs": [["a"]] * 4}, "has 4 items, the limit is 3"),
        ("/similarity", {"inputs": "a"}, "inputs"),
        ("/similarity", {"inputs": {"source_sentence": "a"}}, "Field required"),
        ("/similarity", {"inputs": {**SENTENCES}}, "has 4 items, the limit is 3"),
        ("/rerank", {"texts": ["a"]}, "query: Field required"),
        ("/rerank", {"query": "q", "texts": ["a", None]}, "item 1 is null"),
        ("/rerank", {"query": "q", "texts": ["a"] * 4}, "has 4 items, the limit is 3"),
    ],
)
async def test_what_does_not_fit_is_a_validation_error(path: str, body: dict[str, Any], part: str) -> None:
    app = build_debug_app(*(debug_args(f"{kind}?kind={kind}") for kind in KINDS), max_client_batch_size=3)
    async with client_of(app) as client:
        check_error(await client.post(path, json=body), 422, "Validation", part)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embed", {"inputs": []}),
        ("/predict", {"inputs": []}),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}),
        ("/rerank", {"query": "q", "texts": []}),
    ],
)
async def test_nothing_to_compute_is_a_400(several: httpx.AsyncClient, path: str, body: Any) -> None:
    check_error(await several.post(path, json=body), 400, "Empty", "the list is empty")


@pytest.mark.parametrize(
    ("kind", "path", "body", "part"),
    [
        ("embedder", "/predict", {"inputs": "a"}, "classify"),
        ("classifier", "/embed", {"inputs": "a", "dimensions": 3}, "it supports classify"),
        ("sparse", "/embed", {"inputs": "a"}, "does not have the outputs 'dense'"),
        ("multivector", "/similarity", {"inputs": SENTENCES}, "does not have the outputs 'dense'"),
        ("classifier", "/rerank", {"query": "q", "texts": ["a"]}, "it supports classify"),
        ("embedder&fail_on=poison", "/embed", {"inputs": "poison"}, ""),
    ],
)
async def test_the_wrong_model_and_a_failed_computation_are_a_424(
    kind: str, path: str, body: dict[str, Any], part: str
) -> None:
    async with client_of_kind(kind) as client:
        check_error(await client.post(path, json=body), 424, "Backend", part)


async def test_a_full_queue_is_a_429_with_retry_after() -> None:
    app = build_debug_app(debug_args("debug?delay_s=0.2", max_queue_items=2))
    async with client_of(app) as client:
        accepted = asyncio.create_task(client.post("/embed", json={"inputs": ["a", "b"]}))
        await asyncio.sleep(0.05)
        refused = await client.post("/embed", json={"inputs": "c"})
        assert (await accepted).status_code == 200
    check_error(refused, 429, "Overloaded", "")
    assert refused.headers["retry-after"] == "1"


async def test_a_server_that_stops_is_unhealthy() -> None:
    app = build_debug_app()
    async with client_of(app) as client:
        await asyncio.gather(*(engine.astop() for engine in app.engine_array))
        check_error(await client.post("/embed", json={"inputs": "a"}), 503, "Unhealthy", "")


async def test_a_body_that_is_not_read_has_the_dialects_error_too() -> None:
    async with client_of(build_debug_app(max_body_bytes=20)) as client:
        check_error(
            await client.post("/embed", content=b"a", headers=PLAIN), 415, "Validation", "application/json"
        )
        check_error(await client.post("/embed", json={"inputs": "a" * 30}), 413, "Validation", "")
        broken = await client.post("/", content=b"{", headers={"content-type": "application/json"})
        check_error(broken, 422, "Validation", "not valid JSON")
        missing = await client.post("/embeddings", json={})
    assert list(missing.json()) == ["error", "detail"]


@given(value=anything, member=st.sampled_from(MEMBERS))
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_value_of_one_field_is_served_or_refused_in_the_dialect(
    several: httpx.AsyncClient, value: Any, member: tuple[int, str]
) -> None:
    place, name = member
    path, _, required = REQUESTS[place]
    content = json.dumps({**required, name: value})
    response = await several.post(path, content=content, headers={"content-type": "application/json"})
    assert response.status_code in (200, 400, 422, 424), response.text
    if response.status_code != 200:
        assert TeiError.model_validate_json(response.content, strict=True).error


@pytest.mark.parametrize("inputs", [["a", "bcd", "ef"], [["a"], ["bcd"], ["ef"]], [["a"], "bcd", "ef"]])
async def test_more_than_two_texts_are_a_batch(inputs: Any) -> None:
    """Three texts were refused; one list of labels comes for each."""
    async with client_of_kind("classifier") as client:
        labelled = (await client.post("/predict", json={"inputs": inputs})).json()
    assert [labels[0]["score"] for labels in labelled] == [0.5, 1.5, 1.0]


async def test_a_reranker_predicts_its_only_label() -> None:
    """It was a 424, though its one label is the score."""
    async with client_of_kind("reranker") as client:
        one = await client.post("/predict", json={"inputs": ["q", "abcd"]})
        batch = await client.post(
            "/predict", json={"inputs": [["q", "abcd"], ["x", "ab"]], "raw_scores": True}
        )
        alone = await client.post("/predict", json={"inputs": "a"})
    assert one.json() == [{"score": 2.0, "label": "LABEL_0"}]
    assert [labels[0]["score"] for labels in batch.json()] == [4.0, 2.0]
    check_error(alone, 422, "Validation", "must be pairs of texts")


async def test_an_only_model_answers_to_the_name_of_the_documentation() -> None:
    async with client_of(build_debug_app()) as client:
        assert (await client.post("/embed", json={"inputs": "a", "model": "tei"})).status_code == 200
    async with client_of(build_debug_app(debug_args("first"), debug_args("second"))) as client:
        refused = await client.post("/embed", json={"inputs": "a", "model": "tei"})
    check_error(refused, 422, "Validation", "`tei` not found")


async def test_the_number_of_tokenizer_threads_is_described() -> None:
    async with client_of(build_debug_app()) as client:
        assert (await client.get("/info")).json()["tokenization_workers"] == 1
