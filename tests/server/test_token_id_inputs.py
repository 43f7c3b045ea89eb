"""Token ids in requests: refused by default, else the model's own or OpenAI's."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pytest
import tiktoken

from tests.preprocessing.test_token_ids import BYTES
from tests.support.tiny_server import build_debug_app, client_of, debug_args

pytestmark = pytest.mark.anyio

OWN = {"token_ids": "model"}


async def post(path: str, body: Any, **options: Any) -> httpx.Response:
    async with client_of(build_debug_app(debug_args("debug?kind=embedder", **options))) as client:
        return await client.post(path, json=body)


async def lengths_of(inputs: Any, **options: Any) -> list[float]:
    """The fake's vectors say how many characters a text has."""
    answer = (await post("/embeddings", {"input": inputs}, **options)).json()
    assert [each["index"] for each in answer["data"]] == list(range(len(answer["data"])))
    return [each["embedding"][0] for each in answer["data"]]


@pytest.mark.parametrize(
    ("inputs", "lengths"),
    [([1, 2], [2]), ([[1, 2], [3]], [2, 1]), ([[1, 2], "abc", [3]], [2, 3, 1]), ("abc", [3]), (["a"], [1])],
)
async def test_a_list_of_ids_is_one_input_and_a_list_of_lists_are_several(
    inputs: Any, lengths: list[float]
) -> None:
    assert await lengths_of(inputs, **OWN) == lengths


@pytest.mark.parametrize("policy", ["refuse", "model"])
async def test_on_the_routes_of_text_embeddings_inference_they_are_always_the_models_own(
    policy: str,
) -> None:
    """As on that server; they were refused unless the server was told to take them."""
    inputs = [[98, 97], "c"]
    own = {"token_ids": policy}
    embedded = await post("/embed", {"inputs": inputs, "normalize": False}, **own)
    assert [row[0] for row in embedded.json()] == [2, 1]
    assert embedded.headers["x-compute-characters"] == "3"
    tokens = (await post("/embed_all", {"inputs": inputs}, **own)).json()
    assert [[row[0] for row in each] for each in tokens] == [[98, 97], [99]]
    sparse = (await post("/embed_sparse", {"inputs": inputs}, **own)).json()
    assert [[entry["index"] for entry in each] for each in sparse] == [[97, 98], [99]]


@pytest.mark.parametrize("inputs", [[1, 2], [[1, 2]], ["a", [1]]])
async def test_by_default_they_are_refused_with_the_way_out(inputs: Any) -> None:
    response = await post("/embeddings", {"input": inputs})
    assert response.status_code == 422
    error = response.json()["error"]
    assert error["param"] == "input"
    assert "token ids are not accepted" in error["message"]
    assert "check_embedding_ctx_length=False" in error["message"]


@pytest.mark.parametrize(
    ("members", "status", "part"),
    [
        ({"input": [[]]}, 422, "item 0 is a list"),
        ({"input": []}, 422, "the list is empty"),
        ({"input": [True]}, 422, "item 0"),
        ({"input": [[1, "a"]]}, 422, ""),
        ({"input": [[1, 1.5]]}, 422, ""),
        ({"input": ["a", [0x110000]]}, 400, "input 1 has the token id 1114112"),
        ({"input": [-1]}, 400, "input 0 has the token id -1"),
        ({"input": [1], "prompt": "p"}, 400, "input 0 consists of token ids, which no prompt can precede"),
        ({"input": [1], "input_type": "query"}, 400, "no prompt can precede"),
        ({"input": [[1] * 9000], "truncate": False}, 400, "has 9000 tokens, the limit is 8192"),
        ({"input": [[1], [2]], "late_chunking": True}, 400, "cannot be split or joined"),
        ({"input": [1], "modality": "image"}, 422, "token ids are not accepted"),
        ({"input": [[1]] * 4}, 422, "has 4 items, the limit is 3"),
    ],
)
async def test_what_cannot_be_read_is_named(members: Any, status: int, part: str) -> None:
    app = build_debug_app(debug_args("debug?kind=embedder", **OWN), max_client_batch_size=3)
    async with client_of(app) as client:
        response = await client.post("/embeddings", json=members)
    assert response.status_code == status, response.text
    assert part in response.json()["error"]["message"]


async def test_ids_over_the_limit_are_cut_and_counted() -> None:
    answer = (await post("/embeddings", {"input": [1] * 9000}, **OWN)).json()
    assert answer["usage"]["prompt_tokens"] == 8192


async def test_openais_clients_may_send_the_ids_of_its_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: BYTES)
    ids = [BYTES.encode(text) for text in ("日本", "ab")]
    assert await lengths_of(ids, token_ids="cl100k") == [2, 2]
    tei = await post("/embed", {"inputs": [97, 98, 99], "normalize": False}, token_ids="cl100k")
    assert tei.json() == [[3] * 13], "ids of the model"
    wrong = await post("/embeddings", {"input": [256]}, token_ids="cl100k")
    assert wrong.status_code == 400
    assert "not one of OpenAI's cl100k_base" in wrong.json()["error"]["message"]


async def test_each_model_has_a_policy_of_its_own() -> None:
    app = build_debug_app(debug_args("first", **OWN), debug_args("second"))
    async with client_of(app) as client:
        taken = await client.post("/embeddings", json={"input": [1, 2], "model": "first"})
        refused = await client.post("/embeddings", json={"input": [1, 2], "model": "second"})
    np.testing.assert_array_equal(taken.json()["data"][0]["embedding"], [2.0] * 13)
    assert refused.status_code == 422
