from __future__ import annotations

import base64
import re
from typing import Any

import httpx
import numpy as np
import pytest

from infinity_emb.engine.results import EmbedOptions
from infinity_emb.preprocessing.prompts import MAX_PROMPT_CHARS
from infinity_emb.server.schemas.embeddings import EmbeddingRequest
from infinity_emb.types import EmbeddingDtype
from tests.support.tiny_server import build_debug_app, client_of, client_of_kind, debug_args, embed

pytestmark = pytest.mark.anyio


async def test_answer_has_openais_fields_in_infinitys_order(client: httpx.AsyncClient) -> None:
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


@pytest.mark.parametrize("name", ["dimensions", "output_dimension"])
@pytest.mark.parametrize("dimensions", [0, -1, 14])
async def test_dimensions_that_no_vector_has_are_refused(
    client: httpx.AsyncClient, name: str, dimensions: int
) -> None:
    """0 returned the full vector, though the error about other numbers said: between 1 and 13."""
    response = await embed(client, **{name: dimensions})
    assert response.status_code == 400
    assert "Select between 1 and 13" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("dimensions", "size"), [(13, 13), (None, 13), (4.0, 4), ("4", 4), (13.0, 13), (1, 1), ("13", 13)]
)
async def test_dimensions_in_any_form_of_a_whole_number(
    client: httpx.AsyncClient, dimensions: Any, size: int
) -> None:
    response = await embed(client, dimensions=dimensions)
    assert len(response.json()["data"][0]["embedding"]) == size


async def test_the_zero_dimensions_of_infinity_client_mean_all(client: httpx.AsyncClient) -> None:
    """It sends these two members with every request, whether its user gives a number or not."""
    response = await embed(client, dimensions=0, modality="text")
    assert len(response.json()["data"][0]["embedding"]) == 13


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
    names = EmbeddingRequest.model_fields.keys() - {"input"}
    response = await embed(client, **dict.fromkeys(names))
    assert response.status_code == 200
    assert response.json()["data"] == (await embed(client)).json()["data"]


async def test_unknown_fields_are_ignored(client: httpx.AsyncClient) -> None:
    response = await embed(client, truncate_prompt_tokens=3, messages=[], user="me")
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


async def test_too_many_inputs_are_refused_with_the_limit() -> None:
    async with client_of(build_debug_app(max_client_batch_size=3)) as client:
        assert (await embed(client, ["a"] * 3)).status_code == 200
        response = await embed(client, ["a"] * 4)
    assert response.status_code == 422
    assert response.json()["error"]["message"].startswith("input: has 4 items, the limit is 3;")
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


# What OpenAI's request does not have.

EMBEDDER = "debug?kind=embedder"
MEMBER_OF = {
    "dense": "embedding",
    "sparse": "sparse_embedding",
    "multivector": "multivector_embedding",
}


async def first_of(client: httpx.AsyncClient, text: Any = "hello", **members: Any) -> dict[str, Any]:
    """The first member of `data`."""
    response = await embed(client, text, **members)
    assert response.status_code == 200, response.text
    member: dict[str, Any] = response.json()["data"][0]
    return member


@pytest.mark.parametrize(
    ("members", "prompt"),
    [
        ({}, ""),
        ({"input_type": "query"}, "query: "),
        ({"task": "search_query"}, "query: "),
        ({"input_type": "query", "task": "query"}, "query: "),
        ({"input_type": "passage"}, ""),
        ({"prompt_name": "query"}, "query: "),
        ({"prompt_name": "query", "prompt": "other: "}, "other: "),
        ({"prompt": "", "input_type": "query"}, ""),
        ({"prompt": None, "prompt_name": None, "input_type": None, "task": None}, ""),
    ],
)
async def test_prompts_go_before_the_text(members: dict[str, Any], prompt: str) -> None:
    async with client_of_kind("embedder") as client:
        response = await embed(client, "hello", **members)
    assert response.json()["data"][0]["embedding"] == [len(prompt + "hello")] * 13
    assert response.json()["usage"]["total_tokens"] == len(prompt + "hello")


@pytest.mark.parametrize(
    ("members", "part"),
    [
        ({"input_type": "poem"}, "input_type='poem' is not known"),
        ({"prompt_name": "poem"}, "prompt_name='poem' is not one of this model's prompts"),
    ],
)
async def test_an_unknown_side_or_prompt_is_refused_with_those_there_are(
    members: dict[str, str], part: str
) -> None:
    async with client_of_kind("embedder") as client:
        response = await embed(client, **members)
    assert response.status_code == 400
    assert part in response.json()["error"]["message"]
    assert "'query'" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("members", "param", "part"),
    [
        ({"input_type": "query", "task": "document"}, "task", "conflicts with 'input_type'"),
        ({"dimensions": 4, "output_dimension": 5}, "output_dimension", "conflicts with 'dimensions'"),
        (
            {"embedding_dtype": "int8", "output_dtype": "float"},
            "output_dtype",
            "conflicts with 'embedding_dtype'",
        ),
        (
            {"output_dtype": "int8", "embedding_type": "uint8"},
            "embedding_type",
            "conflicts with 'output_dtype'",
        ),
        ({"truncate": "START", "truncation_side": "right"}, "truncation_side", "conflicts with 'truncate'"),
        ({"late_chunking": True, "chunking": True}, "late_chunking", "cannot be combined with 'chunking'"),
        ({"late_chunking": True, "outputs": ["sparse"]}, "late_chunking", "leave 'outputs' out"),
    ],
)
async def test_fields_that_contradict_each_other_are_a_422(
    members: dict[str, Any], param: str, part: str
) -> None:
    async with client_of_kind("embedder") as client:
        response = await embed(client, **members)
    assert response.status_code == 422
    error = response.json()["error"]
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ")
    assert part in error["message"]
    assert response.json()["detail"][0]["loc"] == ["body", param]


async def test_two_names_of_one_thing_may_agree() -> None:
    async with client_of_kind("embedder") as client:
        member = await first_of(
            client,
            dimensions=4,
            output_dimension=4,
            embedding_dtype="float32",
            output_dtype="float",
            truncate="end",
            truncation_side="right",
        )
    np.testing.assert_allclose(member["embedding"], [0.5] * 4)


@pytest.mark.parametrize("truncate", [False, "NONE", "none", "None"])
@pytest.mark.parametrize("side", [None, "left", "Right"])
async def test_a_long_text_is_refused_where_it_may_not_be_cut(
    client: httpx.AsyncClient, truncate: bool | str, side: str | None
) -> None:
    response = await embed(client, "a" * 9000, truncate=truncate, truncation_side=side)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "input"


@pytest.mark.parametrize(
    ("members", "kept"),
    [
        ({}, "ab"),
        ({"truncate": True}, "ab"),
        ({"truncate": "END"}, "ab"),
        ({"truncate": "right"}, "ab"),
        ({"truncation_side": "right"}, "ab"),
        ({"truncate": "START"}, "bc"),
        ({"truncate": "Left"}, "bc"),
        ({"truncation_side": "left"}, "bc"),
        ({"truncate": True, "truncation_side": "LEFT"}, "bc"),
    ],
)
async def test_a_long_text_loses_the_end_that_is_asked_for(members: dict[str, Any], kept: str) -> None:
    text = "a" + "b" * 8191 + "c"  # one more than the limit
    async with client_of_kind("embedder") as client:
        member = await first_of(client, text, outputs=["sparse"], **members)
    assert member["sparse_embedding"]["indices"] == list(map(ord, kept))


async def test_all_outputs_that_are_asked_for_come_and_no_others() -> None:
    async with client_of_kind("embedder") as client:
        for asked in (["dense"], ["sparse"], ["multivector"], ["sparse", "dense"]):
            member = await first_of(client, "aab", outputs=asked)
            names = {
                "dense": "embedding",
                "sparse": "sparse_embedding",
                "multivector": "multivector_embedding",
            }
            assert set(member) == {"object", "index", *(names[each] for each in asked)}
        member = await first_of(client, "aab", outputs=["dense", "sparse", "multivector"])
    assert member["embedding"] == [3.0] * 13
    assert member["sparse_embedding"] == {"indices": [97, 98], "values": [2.0, 1.0]}
    assert member["multivector_embedding"] == [[97.0] * 13, [97.0] * 13, [98.0] * 13]


async def test_base64_of_several_outputs_states_the_shape_of_the_matrix() -> None:
    async with client_of_kind("embedder") as client:
        member = await first_of(
            client, "aab", outputs=["dense", "sparse", "multivector"], encoding_format="base64"
        )
    assert decoded(member["embedding"], "<f4").tolist() == [3.0] * 13
    assert member["sparse_embedding"] == {"indices": [97, 98], "values": [2.0, 1.0]}
    assert member["shape"] == [3, 13]
    matrix = decoded(member["multivector_embedding"], "<f4").reshape(member["shape"])
    assert matrix[:, 0].tolist() == [97, 97, 98]


async def test_an_output_that_the_model_lacks_is_refused_with_those_it_has(client: httpx.AsyncClient) -> None:
    response = await embed(client, outputs=["sparse"])
    assert response.status_code == 400
    assert "does not have the outputs 'sparse'; it has 'dense'" in response.json()["error"]["message"]


async def test_a_late_interaction_model_answers_a_matrix() -> None:
    async with client_of_kind("multivector") as client:
        body = (await embed(client, ["ab", "c"])).json()
        packed = (await embed(client, ["ab", "c"], encoding_format="base64", dimensions=4)).json()["data"]
    assert [each["embedding"] for each in body["data"]] == [[[97.0] * 13, [98.0] * 13], [[99.0] * 13]]
    assert [each["shape"] for each in packed] == [[2, 4], [1, 4]]
    for each in packed:
        np.testing.assert_allclose(decoded(each["embedding"], "<f4").reshape(each["shape"]), 0.5)


async def test_a_sparse_model_says_how_to_ask_it() -> None:
    async with client_of_kind("sparse") as client:
        response = await embed(client)
        member = await first_of(client, "a", outputs=["sparse"])
    assert response.status_code == 400
    assert "set outputs=['sparse'], or use /embed_sparse" in response.json()["error"]["message"]
    assert member["sparse_embedding"] == {"indices": [97], "values": [1.0]}


@pytest.mark.parametrize("kind", ["reranker", "classifier"])
async def test_a_model_without_vectors_says_what_it_can(kind: str) -> None:
    async with client_of_kind(kind) as client:
        response = await embed(client)
    assert response.status_code == 400
    assert "does not support 'embed'; it supports" in response.json()["error"]["message"]


@pytest.mark.parametrize("name", ["embedding_dtype", "output_dtype", "embedding_type"])
@pytest.mark.parametrize(
    ("asked", "dtype"),
    [
        ("float", "<f4"),
        ("float32", "<f4"),
        ("float16", "<f2"),
        ("int8", "i1"),
        ("uint8", "u1"),
        ("binary", "i1"),
        ("ubinary", "u1"),
    ],
)
async def test_vectors_come_in_the_number_format_that_is_asked_for(name: str, asked: str, dtype: str) -> None:
    app = build_debug_app(debug_args(EMBEDDER))
    async with client_of(app) as client:
        options = EmbedOptions(embedding_dtype=EmbeddingDtype("float32" if asked == "float" else asked))
        answer = await app.engine_array[0].encode(["hello"], options)
        numbers = (await first_of(client, **{name: asked}))["embedding"]
        packed = (await first_of(client, **{name: asked}, encoding_format="base64"))["embedding"]
    assert answer.dense is not None
    np.testing.assert_array_equal(decoded(packed, dtype), answer.dense[0])
    np.testing.assert_array_equal(numbers, answer.dense[0])
    assert {type(each) for each in numbers} == {float if dtype.startswith("<f") else int}


async def test_bits_are_those_of_numpy() -> None:
    async with client_of_kind("embedder") as client:
        member = await first_of(client, embedding_dtype="ubinary", encoding_format="base64")
    np.testing.assert_array_equal(decoded(member["embedding"], "u1"), np.packbits([1] * 13))


async def test_a_number_format_that_a_matrix_cannot_have_is_refused() -> None:
    async with client_of_kind("multivector") as client:
        response = await embed(client, embedding_dtype="int8")
        member = await first_of(client, embedding_dtype="float16", encoding_format="base64")
    assert response.status_code == 400
    assert "ask for float32, float16, binary or ubinary" in response.json()["error"]["message"]
    assert decoded(member["embedding"], "<f2").tolist() == [
        float(ord(each)) for each in "hello" for _ in range(13)
    ]


async def test_a_long_text_is_embedded_in_pieces() -> None:
    async with client_of_kind("embedder") as client:
        response = await embed(client, ["a" * 10_000, "bb"], chunking=True)
    long, short = (each["embedding"] for each in response.json()["data"])
    np.testing.assert_allclose(long, [np.average([8192, 1808], weights=[8192, 1808])] * 13)
    assert short == [2.0] * 13
    assert response.json()["usage"]["total_tokens"] == 10_002


async def test_passages_have_vectors_that_know_where_they_stand() -> None:
    async with client_of_kind("embedder") as client:
        data = (await embed(client, ["ab", "cde", "f"], late_chunking=True)).json()["data"]
        plain = (await embed(client, ["ab", "cde", "f"], late_chunking=False)).json()["data"]
    assert [each["late_chunking"] for each in data] == [
        {"char_range": [0, 3]},
        {"char_range": [3, 7]},
        {"char_range": [7, 8]},
    ]
    assert [each["embedding"][0] for each in data] == [3.0, 4.0, 1.0]
    assert [each["index"] for each in data] == [0, 1, 2]
    assert not any("late_chunking" in each for each in plain)


async def test_chunks_of_one_text_are_fields_of_data() -> None:
    async with client_of_kind("embedder") as client:
        response = await embed(client, "abcdefghij", late_chunking={"chunk_size": 4})
        refused = await embed(client, ["a", "b"], late_chunking={"chunk_size": 4})
        joined = await embed(client, ["a", "b"], late_chunking={"chunk_size": None})
    ranges = [each["late_chunking"]["char_range"] for each in response.json()["data"]]
    assert ranges == [[0, 4], [4, 8], [8, 10]]
    assert [each["embedding"][0] for each in response.json()["data"]] == [4.0, 4.0, 2.0]
    assert response.json()["usage"]["total_tokens"] == 10
    assert refused.status_code == 422
    assert "takes one text, and the request has 2" in refused.json()["error"]["message"]
    assert len(joined.json()["data"]) == 2


async def test_late_chunking_of_a_model_that_does_not_average_is_refused(client: httpx.AsyncClient) -> None:
    response = await embed(client, ["a", "b"], late_chunking=True)
    assert response.status_code == 400
    assert "pools by 'none'" in response.json()["error"]["message"]


def decoded(text: str, dtype: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype=dtype)


async def test_a_prompt_has_a_limit(client: httpx.AsyncClient) -> None:
    assert (await embed(client, prompt="p" * MAX_PROMPT_CHARS)).status_code == 200
    response = await embed(client, prompt="p" * (MAX_PROMPT_CHARS + 1))
    assert response.status_code == 422
    assert f"at most {MAX_PROMPT_CHARS} characters" in response.json()["error"]["message"]
