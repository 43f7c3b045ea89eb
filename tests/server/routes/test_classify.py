from __future__ import annotations

from typing import Any

import httpx
import pytest

from infinity_emb.server.schemas.classify import ClassifyRequest
from tests.support.tiny_server import client_of_kind

pytestmark = pytest.mark.anyio

# The fake classifier answers the number of characters and 0, and halves both raw scores.


async def classify(client: httpx.AsyncClient, given: Any = "aaaa", **members: Any) -> httpx.Response:
    return await client.post("/classify", json={"input": given, **members})


async def test_answer_has_infinitys_fields_in_their_order() -> None:
    async with client_of_kind("classifier") as client:
        body = (await classify(client, ["aaaa", "aa"])).json()
    assert list(body) == ["object", "data", "model", "usage", "id", "created"]
    assert (body["object"], body["model"]) == ("classify", "debug")
    assert body["usage"] == {"prompt_tokens": 6, "total_tokens": 6}
    assert [list(each) for each in body["data"][0]] == [["score", "label"]] * 2


@pytest.mark.parametrize("path", ["/classify", "/v1/classify"])
async def test_all_labels_come_the_most_likely_first(path: str) -> None:
    async with client_of_kind("classifier") as client:
        data = (await client.post(path, json={"input": ["aaaa", "aa"]})).json()["data"]
    assert data == [
        [{"score": 2.0, "label": "characters"}, {"score": 0.0, "label": "none"}],
        [{"score": 1.0, "label": "characters"}, {"score": 0.0, "label": "none"}],
    ]


async def test_raw_scores_leave_the_activation_out() -> None:
    async with client_of_kind("classifier") as client:
        [[first, _]] = (await classify(client, raw_scores=True)).json()["data"]
    assert first == {"score": 4.0, "label": "characters"}


async def test_one_text_and_a_list_of_it_give_the_same_answer() -> None:
    async with client_of_kind("classifier") as client:
        one, listed = (await classify(client, "a")).json(), (await classify(client, ["a"])).json()
    assert one["data"] == listed["data"]


async def test_pairs_are_read_together_and_texts_alone() -> None:
    async with client_of_kind("classifier") as client:
        response = await classify(client, ["aa", ["aa", "bbb"], "c", ["d", ""]], raw_scores=True)
    assert [labels[0]["score"] for labels in response.json()["data"]] == [2.0, 6.0, 1.0, 2.0]


async def test_null_is_the_same_as_not_given() -> None:
    names = ClassifyRequest.model_fields.keys() - {"input"}
    async with client_of_kind("classifier") as client:
        response = await classify(client, **dict.fromkeys(names))
        assert response.json()["data"] == (await classify(client)).json()["data"]


@pytest.mark.parametrize("kind", ["embedder", "reranker"])
async def test_a_model_without_labels_says_what_it_can(kind: str) -> None:
    async with client_of_kind(kind) as client:
        response = await classify(client)
    assert response.status_code == 400
    assert "does not support 'classify'; it supports" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ([], "the list is empty"),
        (None, "must be a text or a list of texts, or of pairs [text, text], not null"),
        ({"text": "a"}, "not an object"),
        (["a", ["b"]], "item 1 is a list"),
        ([["a", "b", "c"]], "item 0 is a list"),
        ([["a", None]], "item 0 is a list"),
        ([["a", ["b"]]], "item 0 is a list"),
        ([["a", "b"], 1.5], "item 1 is a number"),
        ([[1, 2]], "token ids are not accepted"),
    ],
)
async def test_an_input_of_another_form_is_told_apart(given: Any, part: str) -> None:
    async with client_of_kind("classifier") as client:
        response = await classify(client, given)
    assert response.status_code == 422
    assert response.json()["error"]["param"] == "input"
    assert part in response.json()["error"]["message"]


async def test_too_many_inputs_are_refused_and_not_echoed_at_length() -> None:
    async with client_of_kind("classifier", max_client_batch_size=2) as client:
        response = await classify(client, [["x" * 10_000, "y" * 10_000]] * 3)
    assert response.status_code == 422
    assert "has 3 items, the limit is 2" in response.json()["error"]["message"]
    assert len(response.content) < 3000


async def test_a_long_text_is_cut_unless_told_otherwise() -> None:
    async with client_of_kind("classifier") as client:
        assert (await classify(client, "a" * 9000)).json()["usage"]["total_tokens"] == 8192
        response = await classify(client, ["a", "a" * 9000], truncate=False)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "input"
    assert response.json()["error"]["message"].startswith("input 1 has 9000 tokens")
