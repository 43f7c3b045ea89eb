from __future__ import annotations

import base64
import re

import httpx
import numpy as np
import pytest

from tests.server.tiny_server import build_debug_app, client_of, debug_args, embed

pytestmark = pytest.mark.anyio


async def test_answer_has_openais_members_in_infinitys_order(client: httpx.AsyncClient) -> None:
    body = (await embed(client, ["hello", "hi"])).json()
    assert list(body) == ["object", "data", "model", "usage", "id", "created"]
    assert body["object"] == "list"
    assert [list(each) for each in body["data"]] == [["object", "embedding", "index"]] * 2
    assert [(each["object"], each["index"]) for each in body["data"]] == [("embedding", 0), ("embedding", 1)]
    assert body["model"] == "debug"
    assert body["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert re.fullmatch(r"infinity-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", body["id"])
    assert isinstance(body["created"], int)


async def test_vectors_come_in_the_order_of_the_inputs(client: httpx.AsyncClient) -> None:
    body = (await embed(client, ["a" * length for length in (5, 1, 3)])).json()
    assert [each["embedding"] for each in body["data"]] == [[5.0] * 13, [1.0] * 13, [3.0] * 13]


async def test_one_text_and_a_list_of_it_give_the_same_answer(client: httpx.AsyncClient) -> None:
    one, listed = (await embed(client, "hello")).json(), (await embed(client, ["hello"])).json()
    assert one["data"] == listed["data"]


@pytest.mark.parametrize("path", ["/embeddings", "/v1/embeddings"])
async def test_both_paths_serve(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.post(path, json={"input": "hello"})).status_code == 200


async def test_whitespace_is_kept_and_an_empty_text_is_allowed(client: httpx.AsyncClient) -> None:
    body = (await embed(client, [" a ", "", "\n"])).json()
    assert [each["embedding"][0] for each in body["data"]] == [3.0, 0.0, 1.0]


async def test_base64_holds_the_values_of_float(client: httpx.AsyncClient) -> None:
    as_float = (await embed(client, ["hello", "hi"])).json()["data"]
    as_base64 = (await embed(client, ["hello", "hi"], encoding_format="base64")).json()["data"]
    decoded = [np.frombuffer(base64.b64decode(each["embedding"]), dtype="<f4") for each in as_base64]
    np.testing.assert_array_equal(decoded, [each["embedding"] for each in as_float])


@pytest.mark.parametrize("name", ["dimensions", "output_dimension"])
async def test_fewer_dimensions_are_scaled_back_to_length_one(client: httpx.AsyncClient, name: str) -> None:
    vector = (await embed(client, **{name: 4})).json()["data"][0]["embedding"]
    np.testing.assert_allclose(vector, [0.5] * 4)


@pytest.mark.parametrize("members", [{"dimensions": 0}, {"dimensions": None, "output_dimension": 0}])
async def test_zero_dimensions_mean_all(client: httpx.AsyncClient, members: dict[str, int | None]) -> None:
    assert len((await embed(client, **members)).json()["data"][0]["embedding"]) == 13


async def test_output_dimension_counts_where_dimensions_is_null(client: httpx.AsyncClient) -> None:
    response = await embed(client, dimensions=None, output_dimension=4)
    assert len(response.json()["data"][0]["embedding"]) == 4


@pytest.mark.parametrize("dimensions", [14, -1])
async def test_dimensions_out_of_range_are_refused(client: httpx.AsyncClient, dimensions: int) -> None:
    response = await embed(client, dimensions=dimensions)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "dimensions"
    assert "between 1 and 13" in error["message"]


async def test_null_is_the_same_as_not_given(client: httpx.AsyncClient) -> None:
    names = ["model", "encoding_format", "dimensions", "output_dimension", "user", "modality", "truncate"]
    response = await embed(client, **dict.fromkeys(names))
    assert response.status_code == 200
    assert response.json()["data"] == (await embed(client)).json()["data"]


async def test_unknown_members_are_ignored(client: httpx.AsyncClient) -> None:
    response = await embed(client, input_type="query", truncate_prompt_tokens=3, user="me")
    assert response.status_code == 200


async def test_a_long_text_is_cut_unless_told_otherwise(client: httpx.AsyncClient) -> None:
    assert (await embed(client, "a" * 9000)).json()["usage"]["total_tokens"] == 8192
    assert (await embed(client, "a" * 9000, truncate=True)).status_code == 200
    response = await embed(client, "a" * 9000, truncate=False)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "input"
    assert "the limit is 8192" in response.json()["error"]["message"]


@pytest.mark.parametrize("modality", ["image", "audio"])
async def test_a_modality_that_the_model_lacks_is_refused(client: httpx.AsyncClient, modality: str) -> None:
    response = await embed(client, "https://example.com/a", modality=modality, model="debug")
    assert response.status_code == 400
    assert f"'debug' does not support '{modality}_embed'" in response.json()["error"]["message"]


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


async def test_too_many_inputs_are_refused_with_the_limit() -> None:
    async with client_of(build_debug_app(max_client_batch_size=3)) as client:
        assert (await embed(client, ["a"] * 3)).status_code == 200
        response = await embed(client, ["a"] * 4)
    assert response.status_code == 422
    assert response.json()["error"]["message"].startswith("input: has 4 members, the limit is 3;")
    assert response.json()["detail"][0]["loc"] == ["body", "input"]


async def test_binary_vectors_leave_as_their_own_bytes() -> None:
    async with client_of(build_debug_app(debug_args(embedding_dtype="ubinary"))) as client:
        assert (await embed(client)).json()["data"][0]["embedding"] == [255, 248]
        packed = (await embed(client, encoding_format="base64")).json()["data"][0]["embedding"]
    assert base64.b64decode(packed) == bytes([255, 248])


async def test_signed_binary_vectors_leave_as_their_own_bytes() -> None:
    async with client_of(build_debug_app(debug_args(embedding_dtype="binary"))) as client:
        assert (await embed(client)).json()["data"][0]["embedding"] == [127, 120]
        packed = (await embed(client, encoding_format="base64")).json()["data"][0]["embedding"]
    assert np.frombuffer(base64.b64decode(packed), dtype=np.int8).tolist() == [127, 120]


async def test_models_have_infinitys_members_and_ours(client: httpx.AsyncClient) -> None:
    body = (await client.get("/models")).json()
    assert list(body) == ["data", "object"]
    assert body["object"] == "list"
    [entry] = body["data"]
    assert list(entry)[:7] == ["id", "stats", "object", "owned_by", "created", "backend", "capabilities"]
    assert entry.pop("created") > 1_700_000_000
    assert entry == {
        "id": "debug",
        "stats": {"queue_fraction": 0.0, "queue_absolute": 0, "results_pending": 0, "batch_size": 1024},
        "object": "model",
        "owned_by": "infinity",
        "backend": "debugengine",
        "capabilities": ["embed"],
        "aliases": [],
        "embedding_dimension": 13,
        "embedding_dtype": "float32",
        "max_tokens": 8192,
        "max_batch_tokens": 16384,
        "dtype": "float32",
        "dtype_reason": "the fake engine knows no other",
        "device": "cpu",
        "attention": "packed",
        "attention_reason": "nothing attends",
        "pooling": "none",
        "prompts": {},
        "default_prompt_name": None,
        "revision": None,
        "source": "built in",
    }


async def test_a_model_is_found_by_a_name_with_slashes_and_by_alias() -> None:
    app = build_debug_app(debug_args("org/model", served_model_aliases=("short",)), debug_args("b"))
    async with client_of(app) as client:
        for path in ("/models/org/model", "/v1/models/org%2Fmodel", "/v1/models/short"):
            response = await client.get(path)
            assert response.status_code == 200
            assert response.json()["id"] == "org/model"
            assert response.json()["aliases"] == ["short"]
        assert len((await client.get("/v1/models/")).json()["data"]) == 2


async def test_an_unknown_model_has_no_entry(client: httpx.AsyncClient) -> None:
    response = await client.get("/models/org/other")
    assert response.status_code == 404
    assert "Available model names are ['debug']" in response.json()["error"]["message"]
