"""Answers of bytes, read as vLLM's client reads them: by the header `metadata`."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import ml_dtypes
import numpy as np
import pytest

from infinity_emb.server.responses import sliced
from infinity_emb.server.responses.binary_vectors import ByteFormat
from infinity_emb.server.responses.encoding import MAX_DESCRIBED
from tests.support.tiny_server import build_debug_app, client_of, client_of_kind, debug_args, embed

pytestmark = pytest.mark.anyio

TEXTS = ["hello", "", "hi"]
MAX_HEADER_BYTES = 65_536  # a line of Python's http.client, whose `requests` vLLM's examples use
DTYPES: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
}
MEDIA_TYPE = "application/octet-stream"


def read(response: httpx.Response) -> list[np.ndarray]:
    """The rows that the header describes."""
    assert response.status_code == 200, response.text
    vectors = []
    for item in json.loads(response.headers["metadata"])["data"]:
        raw = response.content[item["start"] : item["end"]]
        dtype = np.dtype(DTYPES.get(item["embed_dtype"], item["embed_dtype"]))
        swapped = np.frombuffer(raw, f"{'>' if item['endianness'] == 'big' else '<'}u{dtype.itemsize}")
        vectors.append(swapped.astype(f"u{dtype.itemsize}").view(dtype).reshape(item["shape"]))
    return vectors


async def floats(client: httpx.AsyncClient, text: Any = TEXTS, **members: Any) -> list[np.ndarray]:
    """The same vectors as lists of numbers."""
    data = (await embed(client, text, **members)).json()["data"]
    return [np.array(each["embedding"], np.float32) for each in data]


@pytest.mark.parametrize("path", ["/embeddings", "/v1/embeddings"])
async def test_bytes_are_the_vectors_that_the_header_describes(client: httpx.AsyncClient, path: str) -> None:
    response = await client.post(path, json={"input": TEXTS, "encoding_format": "bytes"})
    assert response.headers["content-type"] == MEDIA_TYPE
    metadata = json.loads(response.headers["metadata"])
    assert metadata.keys() == {"id", "created", "model", "data", "usage"}
    assert (metadata["model"], metadata["usage"]) == ("debug", {"prompt_tokens": 7, "total_tokens": 7})
    assert metadata["data"][2] == {
        "index": 2,
        "embed_dtype": "float32",
        "endianness": "little",
        "start": 104,
        "end": 156,
        "shape": [13],
    }
    np.testing.assert_array_equal(read(response), await floats(client))


async def test_bytes_only_are_the_same_without_the_header(client: httpx.AsyncClient) -> None:
    described = await embed(client, TEXTS, encoding_format="bytes")
    bare = await embed(client, TEXTS, encoding_format="bytes_only")
    assert (bare.content, bare.headers["content-type"]) == (described.content, MEDIA_TYPE)
    assert "metadata" not in bare.headers


@pytest.mark.parametrize("accept", [MEDIA_TYPE, "application/json;q=0.5, Application/Octet-Stream ; q=1"])
async def test_the_accept_header_asks_for_bytes(client: httpx.AsyncClient, accept: str) -> None:
    response = await client.post("/embeddings", json={"input": TEXTS}, headers={"accept": accept})
    np.testing.assert_array_equal(read(response), await floats(client))


@pytest.mark.parametrize(
    "accept", ["*/*", "application/json", "", f"application/json, {MEDIA_TYPE}", f"{MEDIA_TYPE};q=0"]
)
async def test_other_accept_headers_do_not(client: httpx.AsyncClient, accept: str) -> None:
    response = await client.post("/embeddings", json={"input": TEXTS}, headers={"accept": accept})
    assert response.json()["object"] == "list"


async def test_the_body_counts_before_the_accept_header(client: httpx.AsyncClient) -> None:
    body = {"input": TEXTS, "encoding_format": "float"}
    response = await client.post("/embeddings", json=body, headers={"accept": MEDIA_TYPE})
    assert response.json()["object"] == "list"


@pytest.mark.parametrize("endianness", ["native", "big", "little", None])
@pytest.mark.parametrize("embed_dtype", [*DTYPES, None])
async def test_number_format_and_order_of_bytes_are_those_that_are_asked_for(
    client: httpx.AsyncClient, embed_dtype: str | None, endianness: str | None
) -> None:
    how = {"embed_dtype": embed_dtype, "endianness": endianness}
    expected = [each.astype(DTYPES[embed_dtype or "float32"]) for each in await floats(client)]
    response = await embed(client, TEXTS, encoding_format="bytes", **how)
    for given, vector in zip(read(response), expected, strict=True):
        assert given.dtype == vector.dtype
        np.testing.assert_array_equal(given, vector)
    as_text = (await embed(client, TEXTS, encoding_format="base64", **how)).json()["data"]
    assert b"".join(base64.b64decode(each["embedding"]) for each in as_text) == response.content


async def test_lists_of_numbers_have_no_embed_dtype(client: httpx.AsyncClient) -> None:
    given = await floats(client, embed_dtype="fp8_e4m3", endianness="big")
    np.testing.assert_array_equal(given, await floats(client))


async def test_an_embed_dtype_counts_before_the_number_format_of_the_server() -> None:
    async with client_of(build_debug_app(debug_args(embedding_dtype="ubinary"))) as client:
        [bits] = read(await embed(client, encoding_format="bytes"))
        [given] = read(await embed(client, encoding_format="bytes", embed_dtype="bfloat16"))
    assert (bits.dtype, bits.shape) == (np.uint8, (2,))
    np.testing.assert_array_equal(given.astype(np.float32), [5.0] * 13)


@pytest.mark.parametrize("dtype", ["float16", "int8", "uint8", "binary", "ubinary"])
async def test_bytes_of_every_number_format_are_those_of_base64(
    client: httpx.AsyncClient, dtype: str
) -> None:
    response = await embed(client, TEXTS, encoding_format="bytes", embedding_dtype=dtype)
    as_text = (await embed(client, TEXTS, encoding_format="base64", embedding_dtype=dtype)).json()["data"]
    assert b"".join(base64.b64decode(each["embedding"]) for each in as_text) == response.content
    assert [each.dtype.itemsize for each in read(response)] == [2 if dtype == "float16" else 1] * 3


async def test_matrices_follow_one_another_with_their_shapes() -> None:
    async with client_of_kind("multivector") as client:
        matrices = read(await embed(client, TEXTS, encoding_format="bytes"))
        data = (await embed(client, TEXTS)).json()["data"]
    for matrix, each in zip(matrices, data, strict=True):
        assert matrix.tolist() == each["embedding"]


@pytest.mark.parametrize("outputs", [["dense"], ["multivector"], ["multivector", "multivector"]])
async def test_one_output_may_be_named(outputs: list[str]) -> None:
    member = {"dense": "embedding", "multivector": "multivector_embedding"}[outputs[0]]
    async with client_of_kind("embedder") as client:
        [given] = read(await embed(client, encoding_format="bytes", outputs=outputs))
        data = (await embed(client, outputs=outputs)).json()["data"]
    assert given.tolist() == data[0][member]


async def test_slices_make_one_body(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["a" * length for length in range(7)]
    monkeypatch.setattr(sliced, "VALUES_PER_SLICE", 30)
    given = read(await embed(client, texts, encoding_format="bytes"))
    np.testing.assert_array_equal(given, [[float(length)] * 13 for length in range(7)])


async def test_a_models_name_is_escaped_in_the_header() -> None:
    async with client_of(build_debug_app(debug_args(served_model_name="modèle-模型\n"))) as client:
        response = await embed(client, encoding_format="bytes")
    assert json.loads(response.headers["metadata"])["model"] == "modèle-模型\n"


def test_the_header_of_the_most_and_longest_texts_is_one_that_clients_read() -> None:
    rows = [np.broadcast_to(np.float32(0), (32_768, 4_096))] * MAX_DESCRIBED
    described = ByteFormat(embed_dtype="fp8_e4m3", endianness="native").describe(rows)
    assert len(json.dumps(described, separators=(",", ":"))) < MAX_HEADER_BYTES - 1_024


async def test_more_inputs_than_the_header_holds_are_refused_with_the_way_out(
    client: httpx.AsyncClient,
) -> None:
    texts = ["a"] * (MAX_DESCRIBED + 1)
    refused = await embed(client, texts, encoding_format="bytes")
    assert refused.status_code == 422
    error = refused.json()["error"]
    assert error["param"] == "input"
    assert "has 513 items, the limit is 512" in error["message"]
    assert "bytes_only" in error["message"]
    bare = await embed(client, texts, encoding_format="bytes_only")
    assert len(bare.content) == len(texts) * 13 * 4


@pytest.mark.parametrize("encoding_format", ["bytes", "bytes_only"])
@pytest.mark.parametrize(
    ("members", "param", "part"),
    [
        ({"outputs": ["dense", "multivector"]}, "outputs", "either 'dense' or 'multivector'"),
        ({"outputs": ["sparse"]}, "outputs", "use base64"),
        ({"late_chunking": True}, "late_chunking", "use base64"),
        ({"embed_dtype": "float16", "embedding_dtype": "int8"}, "embed_dtype", "'int8'"),
        ({"embed_dtype": "bfloat16", "output_dtype": "ubinary"}, "embed_dtype", "'ubinary'"),
        ({"embed_dtype": "int8"}, "embed_dtype", "'fp8_e4m3' or 'fp8_e5m2'"),
        ({"endianness": "middle"}, "endianness", "'native', 'big' or 'little'"),
        ({"embedding_type": "base64"}, "embedding_type", "'encoding_format'"),
    ],
)
async def test_what_bytes_cannot_say_is_refused(
    client: httpx.AsyncClient, encoding_format: str, members: dict[str, Any], param: str, part: str
) -> None:
    response = await embed(client, encoding_format=encoding_format, **members)
    assert response.status_code == 422
    error = response.json()["error"]
    assert (error["param"], part in error["message"]) == (param, True), error


async def test_an_embed_dtype_may_agree_with_the_number_format(client: httpx.AsyncClient) -> None:
    how = {"embedding_dtype": "float16", "embed_dtype": "float16"}
    [given] = read(await embed(client, encoding_format="bytes", **how))
    np.testing.assert_array_equal(given, np.full(13, 5, np.float16))
