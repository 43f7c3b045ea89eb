"""What clients of Jina send to `/embeddings` and `/multi-vector`."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import numpy as np
import pytest

from tests.server.test_media_routes import image_uri
from tests.support.tiny_server import build_debug_app, client_of, client_of_kind, debug_args, embed

pytestmark = pytest.mark.anyio

IMAGE = image_uri(5)


def error_of(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 422, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


@pytest.mark.parametrize("texts", [[{"text": "hello"}, {"text": "hi"}], ["hello", {"text": "hi"}]])
@pytest.mark.parametrize("modality", ["text", None])
async def test_texts_may_be_objects(
    client: httpx.AsyncClient, texts: list[Any], modality: str | None
) -> None:
    body = (await embed(client, texts, modality=modality)).json()
    assert body["data"] == (await embed(client, ["hello", "hi"])).json()["data"]


@pytest.mark.parametrize("image", [IMAGE, IMAGE.partition(",")[2], "DATA" + IMAGE[4:]])
@pytest.mark.parametrize("modality", ["image", None])
async def test_images_are_objects_of_a_data_uri_or_of_bare_base64(image: str, modality: str | None) -> None:
    objects = [{"image": image}, {"image": image_uri(9)}]
    async with client_of_kind("embedder") as client:
        data = (await embed(client, objects, modality=modality)).json()["data"]
    assert [each["embedding"] for each in data] == [[5.0] * 13, [9.0] * 13]


async def test_an_image_may_be_a_url_which_is_fetched() -> None:
    async with client_of_kind("embedder") as client:
        refused = await embed(client, [{"image": "http://127.0.0.1/a.png"}])
    assert "127.0.0.1" in refused.json()["error"]["message"]


@pytest.mark.parametrize("given", [["a", {"image": IMAGE}], [{"text": "a"}, {"image": IMAGE}]])
async def test_texts_beside_images_are_two_requests(client: httpx.AsyncClient, given: list[Any]) -> None:
    error = error_of(await embed(client, given))
    assert (error["param"], "send two requests" in error["message"]) == ("input", True)


@pytest.mark.parametrize(
    ("given", "modality"),
    [([{"text": "a"}], "image"), ([{"image": IMAGE}], "text"), ([{"image": IMAGE}], "audio")],
)
async def test_a_modality_may_not_contradict_the_objects(
    client: httpx.AsyncClient, given: list[Any], modality: str
) -> None:
    error = error_of(await embed(client, given, modality=modality))
    assert (error["param"], "leave it out" in error["message"]) == ("modality", True)


@pytest.mark.parametrize(
    "given", [{}, {"pdf": "a"}, {"text": None}, {"text": "a", "image": IMAGE}, {"image": 3}]
)
async def test_an_object_of_neither_is_named(client: httpx.AsyncClient, given: dict[str, Any]) -> None:
    error = error_of(await embed(client, ["a", given]))
    assert (error["param"], "item 1 is an object" in error["message"]) == ("input", True)


async def test_what_is_neither_text_nor_object_is_named(client: httpx.AsyncClient) -> None:
    assert "item 1 is null" in error_of(await embed(client, [{"text": "a"}, None]))["message"]


@pytest.mark.parametrize("embedding_type", ["float", ["float"], "ubinary", ["ubinary"], [None]])
async def test_a_type_may_be_the_only_one_of_a_list(client: httpx.AsyncClient, embedding_type: Any) -> None:
    one = embedding_type[0] if isinstance(embedding_type, list) else embedding_type
    data = (await embed(client, embedding_type=embedding_type)).json()["data"]
    assert data == (await embed(client, embedding_dtype=one)).json()["data"]


@pytest.mark.parametrize("embedding_type", ["base64", ["base64"]])
@pytest.mark.parametrize("encoding_format", ["base64", None])
async def test_the_type_base64_is_an_encoding(
    client: httpx.AsyncClient, embedding_type: Any, encoding_format: str | None
) -> None:
    how = {"embedding_type": embedding_type, "encoding_format": encoding_format}
    [member] = (await embed(client, **how)).json()["data"]
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(member["embedding"]), "<f4"), [5.0] * 13)


async def test_base64_may_be_of_another_number_format(client: httpx.AsyncClient) -> None:
    how = {"embedding_type": "base64", "embedding_dtype": "ubinary"}
    [member] = (await embed(client, **how)).json()["data"]
    assert base64.b64decode(member["embedding"]) == np.packbits([1] * 13).tobytes()


@pytest.mark.parametrize(
    ("members", "param", "part"),
    [
        ({"embedding_type": ["float", "binary"]}, "embedding_type", "send a request for each"),
        ({"embedding_type": ["int4"]}, "embedding_type", "'ubinary' and 'base64'"),
        ({"embedding_type": []}, "embedding_type", "must be one of 'float'"),
        ({"embedding_type": {}}, "embedding_type", "must be one of 'float'"),
        ({"embedding_type": [["float"]]}, "embedding_type", "must be one of 'float'"),
        ({"embedding_type": "base64", "encoding_format": "float"}, "embedding_type", "send only one"),
        ({"return_multivector": True, "outputs": ["dense"]}, "return_multivector", "send only one"),
        ({"return_multivector": True, "late_chunking": True}, "late_chunking", "dense vectors"),
    ],
)
async def test_fields_that_contradict_each_other_are_refused(
    client: httpx.AsyncClient, members: dict[str, Any], param: str, part: str
) -> None:
    error = error_of(await embed(client, **members))
    assert (error["param"], part in error["message"]) == (param, True), error


@pytest.mark.parametrize("dtype", ["float32", "float16"])
async def test_normalized_vectors_have_length_one(client: httpx.AsyncClient, dtype: str) -> None:
    data = (await embed(client, ["hello", ""], normalized=True, embedding_dtype=dtype)).json()["data"]
    vectors = np.array([each["embedding"] for each in data], np.float32)
    np.testing.assert_allclose(vectors, [[13**-0.5] * 13, [0.0] * 13], atol=1e-3)
    np.testing.assert_array_equal(vectors.astype(dtype), vectors)


@pytest.mark.parametrize("normalized", [False, None])
async def test_vectors_are_the_models_own_otherwise(
    client: httpx.AsyncClient, normalized: bool | None
) -> None:
    [member] = (await embed(client, normalized=normalized)).json()["data"]
    assert member["embedding"] == [5.0] * 13


@pytest.mark.parametrize("dtype", ["binary", "ubinary"])
async def test_bits_do_not_depend_on_the_length(client: httpx.AsyncClient, dtype: str) -> None:
    scaled = (await embed(client, normalized=True, embedding_dtype=dtype)).json()["data"]
    assert scaled == (await embed(client, embedding_dtype=dtype)).json()["data"]


async def test_normalized_counts_for_bytes_and_for_other_embed_dtypes(client: httpx.AsyncClient) -> None:
    how = {"encoding_format": "bytes_only", "embed_dtype": "float16"}
    content = (await embed(client, normalized=True, **how)).content
    np.testing.assert_allclose(np.frombuffer(content, "<f2"), [13**-0.5] * 13, atol=1e-3)


@pytest.mark.parametrize("kind", ["embedder", "multivector"])
@pytest.mark.parametrize(
    ("path", "members"),
    [
        ("/embeddings", {"return_multivector": True}),
        ("/v1/embeddings", {"return_multivector": True, "outputs": ["multivector"]}),
        ("/multi-vector", {}),
        ("/v1/multi-vector", {"input_type": "document", "return_multivector": False}),
    ],
)
async def test_matrices_are_answered_as_embeddings(kind: str, path: str, members: dict[str, Any]) -> None:
    async with client_of_kind(kind) as client:
        answered = await client.post(path, json={"input": ["ab", "abc"], **members})
        data = answered.json()["data"]
        expected = (await embed(client, ["ab", "abc"], outputs=["multivector"])).json()["data"]
    assert [list(each) for each in data] == [["object", "embeddings", "index"]] * 2
    assert [each["embeddings"] for each in data] == [each["multivector_embedding"] for each in expected]


async def test_matrices_can_be_shorter_scaled_and_of_bits() -> None:
    async with client_of_kind("multivector") as client:
        how = {"dimensions": 4, "normalized": True}
        [short] = (await client.post("/multi-vector", json={"input": "ab", **how})).json()["data"]
        bits = {"embedding_type": ["ubinary"], "encoding_format": "base64"}
        [packed] = (await client.post("/multi-vector", json={"input": "ab", **bits})).json()["data"]
    np.testing.assert_allclose(np.linalg.norm(short["embeddings"], axis=1), 1)
    assert np.shape(short["embeddings"])[1] == 4
    assert len(base64.b64decode(packed["embeddings"])) == np.prod(packed["shape"])


async def test_images_have_matrices_too() -> None:
    async with client_of_kind("multivector") as client:
        data = (await client.post("/multi-vector", json={"input": [{"image": IMAGE}]})).json()["data"]
    assert np.shape(data[0]["embeddings"])[1] == 13


async def test_a_model_without_matrices_says_so(client: httpx.AsyncClient) -> None:
    response = await client.post("/multi-vector", json={"input": "a"})
    assert response.status_code == 400
    assert "it has 'dense'" in response.json()["error"]["message"]


async def test_the_older_routes_take_none_of_it() -> None:
    async with client_of(build_debug_app(debug_args("debug?kind=embedder"))) as client:
        body = {"input": [IMAGE], "encoding_format": "bytes_only", "embed_dtype": "float16"}
        response = await client.post("/embeddings_image", json=body)
        refused = await client.post("/embeddings_image", json={**body, "normalized": True})
    assert "normalized: is not supported by this route" in refused.text
    np.testing.assert_array_equal(np.frombuffer(response.content, "<f4"), [5.0] * 13)
