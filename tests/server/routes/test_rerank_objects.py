"""`document` in rankings: an object at /v1/rerank and /v2/rerank, a text at /rerank."""

from __future__ import annotations

import json
import threading
from typing import Any

import orjson
import pytest

from infinity_emb.server.schemas.rerank import MAX_DOCUMENT_DEPTH, MAX_RANK_FIELDS
from tests.support.tiny_server import client_of_kind

pytestmark = pytest.mark.anyio

QUERY = "q"
JSON = {"content-type": "application/json"}


async def documents_of(path: str, documents: Any, **members: Any) -> list[Any]:
    """Return the documents in the order of the request, or "absent" for each that is left out."""
    async with client_of_kind("reranker", **members.pop("config", {})) as client:
        response = await client.post(path, json={"query": QUERY, "documents": documents, **members})
    assert response.status_code == 200, response.text
    results = sorted(response.json()["results"], key=lambda ranked: ranked["index"])
    return [ranked.get("document", "absent") for ranked in results]


@pytest.mark.parametrize(
    ("path", "asked", "expected"),
    [
        ("/rerank", None, "absent"),
        ("/rerank", False, "absent"),
        ("/rerank", True, "text"),
        ("/v1/rerank", None, "object"),
        ("/v1/rerank", True, "object"),
        ("/v1/rerank", False, "absent"),
        ("/v2/rerank", None, "absent"),
        ("/v2/rerank", True, "object"),
        ("/v2/rerank", False, "absent"),
    ],
)
async def test_each_path_returns_documents_as_its_clients_read_them(
    path: str, asked: bool | None, expected: str
) -> None:
    """LiteLLM, Jina's, Milvus' and Cohere's clients failed on the text at /v1/rerank."""
    found = await documents_of(path, ["a", "bc"], return_documents=asked)
    assert (
        found
        == {
            "absent": ["absent", "absent"],
            "text": ["a", "bc"],
            "object": [{"text": "a"}, {"text": "bc"}],
        }[expected]
    )


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
async def test_a_document_that_was_an_object_comes_back_whole(path: str) -> None:
    documents = [{"text": "a", "id": 7}, "bc", {"title": "d", "text": "e"}]
    found = await documents_of(path, documents, return_documents=True, rank_fields=["title", "text"])
    assert found == [{"text": "a", "id": 7}, {"text": "bc"}, {"title": "d", "text": "e"}]


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
async def test_a_document_of_many_nested_lists_is_refused(path: str) -> None:
    """It could be read and not be written, which was a 500."""
    async with client_of_kind("reranker") as client:
        for depth, is_fine in ((MAX_DOCUMENT_DEPTH, True), (MAX_DOCUMENT_DEPTH + 1, False), (500, False)):
            lists = "[" * (depth - 1) + "]" * (depth - 1)
            document = json.loads(f'{{"text": "a", "more": {lists}}}')
            request = {"query": QUERY, "documents": ["a", document], "return_documents": True}
            response = await client.post(path, content=json.dumps(request), headers=JSON)
            if is_fine:
                found = [each["document"] for each in response.json()["results"] if each["index"] == 1]
                assert found == ["a" if path == "/rerank" else document]
            else:
                assert response.status_code == (400 if path == "/v2/rerank" else 422)
                assert "item 1 has over 200 levels of nested lists and objects" in response.text


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
async def test_documents_are_written_off_the_event_loop(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only their texts counted: an object with another field of 30 MB was encoded in one call on the loop."""
    document = {"text": "a", "other": ["\x01é" * 10**6, "b"], "n": {"m": "c" * 10**6}}
    encoded: list[tuple[bool, int]] = []

    def note(content: Any, *arguments: Any, **options: Any) -> bytes:
        text = dumps(content, *arguments, **options)
        encoded.append((threading.current_thread() is threading.main_thread(), len(text)))
        return text

    dumps = orjson.dumps
    async with client_of_kind("reranker") as client:
        monkeypatch.setattr(orjson, "dumps", note)
        request = {"query": QUERY, "documents": [document, "d" * 10**6], "return_documents": True}
        response = await client.post(path, content=json.dumps(request), headers=JSON)
        monkeypatch.undo()
    found = {each["index"]: each["document"] for each in response.json()["results"]}
    expected = ["a", "d" * 10**6] if path == "/rerank" else [document, {"text": "d" * 10**6}]
    assert [found[0], found[1]] == expected
    assert max((size for is_main, size in encoded if is_main), default=0) < 10_000
    assert max(size for _, size in encoded) < 10**6


async def test_under_the_prefix_v1_the_route_is_that_of_infinity() -> None:
    """People who moved here start with `--url-prefix /v1`, and their clients read a text."""
    config = {"url_prefix": "/v1"}
    assert await documents_of("/v1/rerank", ["a"], return_documents=True, config=config) == ["a"]


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
@pytest.mark.parametrize(
    "documents",
    [
        {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "bc"}]},
        [{"content": [{"type": "text", "text": "a"}]}, "bc"],
    ],
)
async def test_content_parts_of_vllm_are_documents(path: str, documents: Any) -> None:
    assert len(await documents_of(path, documents)) == 2


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
@pytest.mark.parametrize("top_n", [0, None, 99])
async def test_zero_is_all_documents(path: str, top_n: int | None) -> None:
    """Dify and vLLM's users send 0, which was a 422."""
    assert len(await documents_of(path, ["a", "b", "c"], top_n=top_n)) == 3


# Members that change scores.


async def scores_of(path: str, documents: list[str], kind: str = "reranker", **members: Any) -> list[float]:
    async with client_of_kind(kind) as client:
        body = {"query": QUERY, "documents": documents, **members}
        if path == "/score":
            response = await client.post(path, json=body | {"queries": QUERY})
            return [entry["score"] for entry in response.json()["data"]]
        response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    results = sorted(response.json()["results"], key=lambda ranked: ranked["index"])
    return [ranked["relevance_score"] for ranked in results]


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank", "/score"])
@pytest.mark.parametrize("name", ["max_tokens_per_doc", "max_doc_length"])
async def test_documents_are_cut_to_their_number_of_tokens(path: str, name: str) -> None:
    """It was ignored: the score of a long document was that of all of it."""
    texts = ["abcdefgh", "ab", "abc"]
    assert await scores_of(path, texts, **{name: 3}) == await scores_of(path, ["abc", "ab", "abc"])
    assert await scores_of(path, texts, **{name: None}) == await scores_of(path, texts)
    assert await scores_of(path, texts, **{name: 9000}) == await scores_of(path, texts)


async def test_the_cut_document_is_returned_whole() -> None:
    assert await documents_of("/rerank", ["abcdef"], max_tokens_per_doc=2, return_documents=True) == [
        "abcdef"
    ]


async def test_an_embedder_reads_the_cut_texts_too() -> None:
    async with client_of_kind("embedder") as client:
        body = {"query": "abcd", "documents": ["abcdef"], "max_tokens_per_doc": 2, "max_tokens_per_query": 3}
        response = await client.post("/rerank", json=body)
    assert response.json()["usage"]["total_tokens"] == len("query: ") + 3 + 2


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank", "/score"])
@pytest.mark.parametrize("name", ["use_activation", "activation"])
async def test_scores_come_without_the_activation_function(path: str, name: str) -> None:
    """It was ignored on all rankings: the sigmoid's 0.57 instead of the logit 0.29."""
    assert await scores_of(path, ["abcd"], **{name: False}) == [4]
    assert await scores_of(path, ["abcd"], **{name: True}) == [2]


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"max_tokens_per_doc": 0}, "max_tokens_per_doc"),
        ({"max_tokens_per_doc": -5}, "max_tokens_per_doc"),
        ({"max_chunks_per_doc": 3}, "max_chunks_per_doc"),
        ({"use_activation": False, "raw_scores": False}, "use_activation"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(path: str, members: dict[str, Any], param: str) -> None:
    async with client_of_kind("reranker") as client:
        response = await client.post(path, json={"query": QUERY, "documents": ["a"], **members})
    assert response.status_code in (400, 422)
    assert param in response.text


async def test_fields_that_are_named_again_and_again_multiply_no_document() -> None:
    """10 MB of documents, each joined 2,000 times with itself, took 20 GB and the server down."""
    documents = [{"text": "d", "body": "x" * 100_000}] * 10
    request = {"query": "q", "documents": documents, "rank_fields": ["body"] * MAX_RANK_FIELDS}
    async with client_of_kind("reranker") as client:
        response = await client.post("/rerank", json=request | {"return_documents": True})
        assert [len(each["document"]) for each in response.json()["results"]] == [100_000] * 10
        response = await client.post("/rerank", json=request | {"rank_fields": ["body"] * 2000})
    assert response.status_code == 422
    assert response.json()["error"]["param"] == "rank_fields"
    assert len(response.content) < 1000
