from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import numpy as np
import pytest

from infinity_emb._version import __version__
from infinity_emb.backends import fake
from infinity_emb.engine.scoring import Scorer
from infinity_emb.server.dialects.vllm.schemas import (
    VllmClassifyRequest,
    VllmClassifyResponse,
    VllmPoolingRequest,
    VllmPoolingResponse,
    VllmScoreRequest,
    VllmScoreResponse,
)
from infinity_emb.server.routes import rerank as rerank_route
from tests.support.tiny_server import build_debug_app, client_of, client_of_kind, debug_args

pytestmark = pytest.mark.anyio

DOCUMENTS = ["aaa", "a", "aaaa", "aa"]
# The fake reranker answers the number of the document's characters, and halves raw scores.
SCORES = [1.5, 0.5, 2.0, 1.0]


async def score(client: httpx.AsyncClient, path: str = "/score", **members: Any) -> httpx.Response:
    return await client.post(path, json={"queries": "q", "documents": DOCUMENTS, **members})


def scores_of(response: httpx.Response) -> list[float]:
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    assert [(each["index"], each["object"]) for each in data] == [(at, "score") for at in range(len(data))]
    return [each["score"] for each in data]


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
@pytest.mark.parametrize(
    ("first", "second"),
    [("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2")],
)
async def test_scores_are_in_the_order_of_the_documents_whatever_the_fields_are_called(
    path: str, first: str, second: str
) -> None:
    async with client_of_kind("reranker") as client:
        response = await client.post(path, json={"model": "debug", first: "q", second: DOCUMENTS})
    assert scores_of(response) == SCORES
    answer = VllmScoreResponse.model_validate_json(response.content, strict=True)
    assert (answer.object, answer.model) == ("list", "debug")
    assert answer.usage.total_tokens == sum(len("q") + 1 + len(document) for document in DOCUMENTS)


@pytest.mark.parametrize("documents", ["aaa", ["aaa"], {"text": "aaa"}, [{"text": "aaa", "title": "t"}]])
@pytest.mark.parametrize("queries", ["q", ["q"], {"text": "q"}])
async def test_a_text_and_a_list_of_it_and_an_object_with_it_are_the_same(
    queries: Any, documents: Any
) -> None:
    async with client_of_kind("reranker") as client:
        assert scores_of(await score(client, queries=queries, documents=documents)) == [1.5]


@pytest.mark.parametrize("kind", ["reranker", "embedder", "sparse", "multivector"])
async def test_each_pair_is_scored_as_a_ranking_of_it_alone_would_be(kind: str) -> None:
    """Distinct vectors, as the fake embedder's are all of one direction."""
    queries = ["ab", "c", "ab", "bb", "ab"]
    documents = ["abc", "cc", "b", "ab", ""]
    async with client_of_kind(kind) as client:
        found = await score(client, queries=queries, documents=documents)
        alone = [
            (await client.post("/rerank", json={"query": query, "documents": [document]})).json()
            for query, document in zip(queries, documents, strict=True)
        ]
    assert scores_of(found) == [each["results"][0]["relevance_score"] for each in alone]


async def test_equal_queries_are_read_once() -> None:
    async with client_of_kind("sparse") as client:
        body = (await score(client, queries=["q", "x", "q", "q"])).json()
    read = sum(map(len, DOCUMENTS)) + len("query: q") + len("query: x")
    assert body["usage"]["total_tokens"] == read


async def test_logits_are_answered_where_the_activation_is_left_out() -> None:
    async with client_of_kind("reranker") as client:
        for members in ({"use_activation": False}, {"activation": False}):
            assert scores_of(await score(client, **members)) == [3.0, 1.0, 4.0, 2.0]
        assert scores_of(await score(client, use_activation=True)) == SCORES


async def test_the_instruction_stands_before_the_pairs() -> None:
    async with client_of_kind("reranker") as client:
        plain, told = [
            (await score(client, instruction=text)).json()["usage"]["total_tokens"]
            for text in (None, "12345")
        ]
    assert told == plain + 5 * len(DOCUMENTS)


@pytest.mark.parametrize(
    ("members", "param", "part"),
    [
        ({"queries": ["a", "b"]}, "queries", "has 2 texts for 4 documents; send one, or one for each"),
        ({"queries": ["a"] * 5}, "queries", "has 5 texts for 4 documents"),
        ({"documents": []}, "documents", "the list is empty"),
        ({"queries": []}, "queries", "the list is empty"),
        ({"documents": ["a", {"title": "t"}]}, "documents", "item 1 is an object"),
        ({"documents": 3}, "documents", "objects with a `text`, not a number"),
        ({"queries": [["a", "b"]]}, "queries", "item 0 is a list"),
        ({"documents": ["a"] * 6}, "documents", "has 6 items, the limit is 5"),
        ({"instruction": "x" * 100_001}, "instruction", "100000"),
        ({"truncate": "START", "truncation_side": "right"}, "truncation_side", "conflicts with 'truncate'"),
    ],
)
async def test_a_request_that_makes_no_pairs_is_a_422(members: Any, param: str, part: str) -> None:
    async with client_of_kind("reranker", max_client_batch_size=5) as client:
        response = await score(client, **members)
    assert response.status_code == 422
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (param, 422)
    assert part in error["message"]


@pytest.mark.parametrize("body", [{"documents": ["a"]}, {"text_1": "q"}, {}])
async def test_a_side_that_is_missing_is_named(body: dict[str, Any]) -> None:
    async with client_of_kind("reranker") as client:
        response = await client.post("/score", json=body)
    assert response.status_code == 422
    assert response.json()["error"]["message"].endswith("Field required")


async def test_an_error_names_the_document_by_its_own_place() -> None:
    documents = ["a", "a", "a", "a" * 9000]
    async with client_of_kind("reranker") as client:
        response = await score(
            client, queries=["q", "x", "q", "x"], documents=documents, truncation_side=None, truncate=False
        )
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "documents")
    assert error["message"].startswith("input 3 has ")


async def test_a_failing_pair_fails_the_request_and_the_next_one_is_served() -> None:
    async with client_of(build_debug_app(debug_args("debug?kind=reranker&fail_on=poison"))) as client:
        failed = await score(client, queries=["q", "x"], documents=["fine", "poison"])
        assert (failed.status_code, failed.json()["error"]["code"]) == (500, 500)
        assert scores_of(await score(client)) == SCORES


async def test_the_only_model_that_is_made_for_it_answers_where_none_is_named() -> None:
    app = build_debug_app(*(debug_args(f"{kind}?kind={kind}") for kind in ("embedder", "reranker")))
    async with client_of(app) as client:
        assert (await score(client)).json()["model"] == "reranker"
        assert (await score(client, model="other")).status_code == 404


async def pool(client: httpx.AsyncClient, given: Any = "hello", **members: Any) -> httpx.Response:
    return await client.post("/pooling", json={"input": given, **members})


async def test_embed_answers_a_vector_for_each_text() -> None:
    async with client_of_kind("embedder") as client:
        response = await pool(client, ["hello", ""], task="embed", model="debug")
    body = VllmPoolingResponse.model_validate_json(response.content, strict=True)
    assert [each.data for each in body.data] == [[5.0] * 13, [0.0] * 13]
    assert [(each.index, each.object) for each in body.data] == [(0, "pooling"), (1, "pooling")]
    assert (body.object, body.usage.total_tokens) == ("list", 5)


async def test_token_embed_answers_a_matrix_for_each_text() -> None:
    async with client_of_kind("multivector") as client:
        answers = [(await pool(client, "ab", task=task)).json()["data"] for task in ("token_embed", None)]
    assert answers[0] == answers[1] == [{"index": 0, "object": "pooling", "data": [[97.0] * 13, [98.0] * 13]}]


async def test_token_embed_of_other_embedders_is_what_they_say_of_each_token() -> None:
    async with client_of_kind("auto") as client:
        [scaled] = (await pool(client, "ab", task="token_embed")).json()["data"]
        [raw] = (await pool(client, "ab", task="token_embed", use_activation=False)).json()["data"]
        [text] = (await pool(client, "ab")).json()["data"]
    np.testing.assert_allclose(np.linalg.norm(scaled["data"], axis=1), [1.0, 1.0], rtol=1e-6)
    np.testing.assert_allclose(raw["data"], [[97.0] * 13, [98.0] * 13])
    assert text["data"] == [2.0] * 13


@pytest.mark.parametrize("task", ["embed", "token_embed", "classify"])
async def test_base64_is_the_floats_row_by_row(task: str) -> None:
    kind = "classifier" if task == "classify" else "embedder"
    async with client_of_kind(kind) as client:
        [plain] = (await pool(client, "ab", task=task, encoding_format="float")).json()["data"]
        [packed] = (await pool(client, "ab", task=task, encoding_format="base64")).json()["data"]
    decoded = np.frombuffer(base64.b64decode(packed["data"]), "<f4")
    assert decoded.tolist() == np.ravel(plain["data"]).tolist()


@pytest.mark.parametrize("task", ["classify", None])
async def test_a_classifier_answers_the_probabilities_of_its_labels(task: str | None) -> None:
    async with client_of_kind("classifier") as client:
        data = (await pool(client, ["aaaa", "aa"], task=task)).json()["data"]
        raw = (await pool(client, ["aaaa"], task=task, use_activation=False)).json()["data"]
    assert [each["data"] for each in data] == [[2.0, 0.0], [1.0, 0.0]]
    assert raw[0]["data"] == [4.0, 0.0]


async def test_vectors_can_be_shortened_and_texts_cut() -> None:
    async with client_of_kind("embedder") as client:
        [short] = (await pool(client, dimensions=4)).json()["data"]
        [cut] = (await pool(client, truncate_prompt_tokens=3)).json()["data"]
        [query] = (await pool(client, model="debug-query")).json()["data"]
    assert short["data"] == [0.5] * 4
    assert cut["data"] == [3.0] * 13
    assert query["data"] == [float(len("query: hello"))] * 13


@pytest.mark.parametrize(
    ("kind", "members", "status", "part"),
    [
        ("embedder", {"task": "token_classify"}, 422, "is not supported"),
        ("embedder", {"task": "plugin"}, 422, "task"),
        ("embedder", {"task": "classify"}, 400, "does not support 'classify'"),
        ("reranker", {"task": "embed"}, 400, "does not support 'embed'"),
        ("reranker", {"task": None}, 422, "must be pairs of texts"),
        ("embedder", {"input": [["a", "b"]]}, 422, "must be texts for this task, not pairs"),
        ("classifier", {"input": [0x110000]}, 400, "has the token id 1114112"),
        ("auto", {"task": "token_embed", "dimensions": 4}, 422, "dimensions"),
        ("sparse", {"task": "embed"}, 400, "it has 'sparse'"),
        ("multivector", {"task": "embed"}, 400, "it has 'multivector'"),
        ("embedder", {"encoding_format": "hex"}, 422, "encoding_format"),
        ("embedder", {"dimensions": 14}, 400, "between 1 and 13"),
        ("embedder", {"input": []}, 422, "the list is empty"),
        ("embedder", {"input": ["a"] * 6}, 422, "the limit is 5"),
    ],
)
async def test_what_cannot_be_pooled_is_refused(kind: str, members: Any, status: int, part: str) -> None:
    async with client_of_kind(kind, max_client_batch_size=5) as client:
        response = await client.post("/pooling", json={"input": "a", **members})
    assert response.status_code == status
    assert part in response.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/classify", "/v1/classify"])
@pytest.mark.parametrize("member", ["use_activation", "activation"])
async def test_a_field_that_only_vllm_has_asks_for_its_form_of_classify(path: str, member: str) -> None:
    async with client_of_kind("classifier") as client:
        response = await client.post(path, json={"model": "debug", "input": ["aaaa", ""], member: True})
        raw = (await client.post(path, json={"input": "aaaa", member: False})).json()
    body = VllmClassifyResponse.model_validate_json(response.content, strict=True)
    assert [each.model_dump() for each in body.data] == [
        {"index": 0, "label": "characters", "probs": [2.0, 0.0], "num_classes": 2},
        {"index": 1, "label": "characters", "probs": [0.0, 0.0], "num_classes": 2},
    ]
    assert (body.object, body.usage.total_tokens) == ("list", 4)
    assert raw["data"][0]["probs"] == [4.0, 0.0]


async def test_probabilities_keep_the_order_of_the_labels_whichever_is_the_likeliest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fake, "halve_scores", np.negative)
    async with client_of_kind("classifier") as client:
        labels = (await client.get("/models")).json()["data"][0]["labels"]
        own = (await client.post("/classify", json={"input": "aa"})).json()["data"][0]
        body = {"input": "aa", "use_activation": None}
        [found] = (await client.post("/classify", json=body)).json()["data"]
    assert [each["label"] for each in own] == ["none", "characters"] == labels[::-1]
    assert (found["label"], found["probs"]) == ("none", [-2.0, 0.0])


@pytest.mark.parametrize(
    ("kind", "path", "schema", "body"),
    [
        ("reranker", "/score", VllmScoreRequest, {"queries": "q", "documents": "d"}),
        ("embedder", "/pooling", VllmPoolingRequest, {"input": "a"}),
        ("classifier", "/classify", VllmClassifyRequest, {"input": "a"}),
    ],
)
async def test_null_is_the_same_as_not_given_and_unknown_fields_are_ignored(
    kind: str, path: str, schema: Any, body: Any
) -> None:
    extra = {"padding": "do_not_pad", "priority": 0, "cache_salt": None, "mm_processor_kwargs": None}
    nulls = dict.fromkeys(schema.model_fields.keys() - body.keys())
    async with client_of_kind(kind) as client:
        plain = (await client.post(path, json=body | {"use_activation": None})).json()
        found = (await client.post(path, json={**nulls, **body, **extra})).json()
    assert found["data"] == plain["data"]


@pytest.mark.parametrize("kind", ["embedder", "classifier"])
@pytest.mark.parametrize(
    ("embed_dtype", "dtype"),
    [(None, "<f4"), ("float32", "<f4"), ("float16", "<f2"), ("bfloat16", None), ("fp8_e4m3", None)],
)
async def test_results_come_in_the_dtype_and_byte_order_of_the_request(
    kind: str, embed_dtype: str | None, dtype: str | None
) -> None:
    """These members were ignored: the client decoded float32 as float16."""
    how = {"embed_dtype": embed_dtype, "model": "debug"}
    async with client_of_kind(kind) as client:
        plain = [entry["data"] for entry in (await pool(client, ["ab", "abc"])).json()["data"]]
        coded = (await pool(client, ["ab", "abc"], encoding_format="base64", **how)).json()["data"]
        turned = await pool(client, ["ab", "abc"], encoding_format="base64", endianness="big", **how)
        described = await pool(client, ["ab", "abc"], encoding_format="bytes", **how)
        bare = await pool(client, ["ab", "abc"], encoding_format="bytes_only", **how)
    rows = [base64.b64decode(entry["data"]) for entry in coded]
    assert bare.content == described.content == b"".join(rows)
    metadata = json.loads(described.headers["metadata"])
    assert metadata["usage"]["total_tokens"] == 5
    assert [entry["embed_dtype"] for entry in metadata["data"]] == [embed_dtype or "float32"] * 2
    assert "metadata" not in bare.headers
    if dtype is not None:
        assert [np.frombuffer(row, dtype).tolist() for row in rows] == plain
        big = base64.b64decode(turned.json()["data"][0]["data"])
        assert np.frombuffer(big, dtype.replace("<", ">")).tolist() == plain[0]


async def test_a_header_describes_a_limited_number_of_results() -> None:
    async with client_of_kind("auto") as client:
        refused = await pool(client, ["a"] * 513, encoding_format="bytes")
        assert (await pool(client, ["a"] * 513, encoding_format="bytes_only")).status_code == 200
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "input")


@pytest.mark.parametrize("task", ["classify", None])
async def test_a_reranker_is_a_classifier_with_one_label(task: str | None) -> None:
    """It was refused."""
    pairs = [["q", "abcd"], ["x", "ab"], ["q", "a"]]
    async with client_of_kind("reranker") as client:
        answered = await pool(client, pairs, task=task)
        raw = await pool(client, pairs, task=task, use_activation=False)
    assert [entry["data"] for entry in answered.json()["data"]] == [[2.0], [1.0], [0.5]]
    assert [entry["data"] for entry in raw.json()["data"]] == [[4.0], [2.0], [1.0]]


@pytest.mark.parametrize(
    ("kind", "path"), [("embedder", "/pooling"), ("classifier", "/pooling"), ("classifier", "/classify")]
)
@pytest.mark.parametrize("policy", ["refuse", "model"])
async def test_token_ids_are_those_of_the_model(kind: str, path: str, policy: str) -> None:
    """vLLM has no other; they were refused, also with --token-ids model."""
    app = build_debug_app(debug_args(f"debug?kind={kind}", token_ids=policy))
    async with client_of(app) as client:
        answers = [
            (await client.post(path, json={"input": given, "use_activation": None})).json()["data"]
            for given in (["ab", "c"], [[97, 98], [99]], ["ab", [99]], [97, 98])
        ]
    assert answers[0] == answers[1] == answers[2]
    assert answers[3] == answers[0][:1]


@pytest.mark.parametrize("kind", ["reranker", "embedder", "multivector", "sparse"])
@pytest.mark.parametrize(
    ("queries", "documents"),
    [
        ([113], [[97, 98], "abc", [99]]),
        ([[113]], ["ab", {"text": "abc"}, [99]]),
        (["q", [113], "q"], [[97, 98], [97, 98, 99], [99]]),
        ("q", {"content": [{"type": "text", "text": "ab"}, {"type": "text", "text": "abc"}, [99]]}),
    ],
)
async def test_token_ids_are_scored_as_their_texts(kind: str, queries: Any, documents: Any) -> None:
    """They were refused."""
    async with client_of_kind(kind) as client:
        expected = await score(client, queries="q", documents=["ab", "abc", "c"])
        found = await score(client, queries=queries, documents=documents)
    assert scores_of(found) == scores_of(expected)
    assert found.json()["usage"] == expected.json()["usage"]


async def test_an_unknown_token_id_of_a_document_is_named_by_its_place() -> None:
    async with client_of_kind("reranker") as client:
        response = await score(client, queries="q", documents=["a", [97, 5_000_000]])
    assert response.status_code == 400
    assert "input 1 has the token id 5000000" in response.json()["error"]["message"]


async def test_tokenize_and_detokenize_are_inverse() -> None:
    async with client_of_kind("embedder") as client:
        tokens = (await client.post("/tokenize", json={"model": "debug", "prompt": "abc"})).json()
        named = await client.post("/tokenize", json={"prompt": "ab", "return_token_strs": True})
        text = await client.post("/detokenize", json={"model": "debug", "tokens": tokens["tokens"]})
        wrong = await client.post("/detokenize", json={"tokens": [-1]})
        chat = await client.post("/tokenize", json={"messages": [{"role": "user", "content": "a"}]})
        tei = await client.post("/tokenize", json={"inputs": "a"})
    assert tokens == {"count": 3, "max_model_len": 8192, "tokens": [97, 98, 99], "token_strs": None}
    assert named.json()["token_strs"] == ["a", "b"]
    assert text.json() == {"prompt": "abc"}
    assert (wrong.status_code, chat.status_code) == (400, 422)
    assert tei.json()[0][0]["id"] == 97


async def test_the_tokens_of_a_long_text_are_listed_in_slices() -> None:
    """Half a million of them were listed and encoded on the event loop."""
    text = "abc" * 10_000
    async with client_of_kind("embedder") as client:
        found = (await client.post("/tokenize", json={"prompt": text, "return_token_strs": True})).json()
    assert found["count"] == len(text)
    assert found["tokens"] == list(map(ord, text))
    assert found["token_strs"] == list(text)


async def test_models_and_version_are_described_as_vllm_does(client: httpx.AsyncClient) -> None:
    [entry] = (await client.get("/v1/models")).json()["data"]
    assert entry["max_model_len"] == entry["max_tokens"] == 8192
    assert (await client.get("/version")).json() == {"version": __version__}


@pytest.mark.parametrize(
    ("kind", "body", "field"),
    [
        ("embedder", {"input": "a"}, "data"),
        ("embedder", {"text_1": "a", "text_2": ["b"]}, "data"),
        ("embedder", {"query": "q", "documents": ["d"]}, "results"),
        ("embedder", {"inputs": "a"}, 0),
        ("embedder", {"query": "q", "texts": ["a"]}, 0),
        ("classifier", {"inputs": "a"}, 0),
    ],
)
async def test_sagemaker_sends_every_request_to_one_path(kind: str, body: Any, field: Any) -> None:
    async with client_of_kind(kind) as client:
        response = await client.post("/invocations", json=body)
        assert (await client.get("/ping")).status_code == 200
    assert response.status_code == 200, response.text
    assert response.json()[field]


async def test_of_thousands_of_queries_some_are_scored_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of 2,048 started in one turn of the event loop, which was held for half a second."""
    monkeypatch.setattr(rerank_route, "MAX_QUERIES_AT_ONCE", 3)
    rerank = Scorer.rerank
    num_running = most = 0

    async def note(*args: Any) -> Any:
        nonlocal num_running, most
        num_running += 1
        most = max(most, num_running)
        try:
            return await rerank(*args)
        finally:
            num_running -= 1

    monkeypatch.setattr(Scorer, "rerank", note)
    async with client_of_kind("reranker") as client:
        request = {"queries": [f"{number}" for number in range(20)], "documents": ["a" * 8] * 20}
        data = (await client.post("/score", json=request)).json()["data"]
    assert len(data) == 20
    assert most == 3
