"""Images and audio: `/embeddings` with a modality, and infinity's two older routes."""

from __future__ import annotations

import base64
import io
import wave
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from infinity_emb.server.schemas.embeddings import MediaRequest
from tests.support.tiny_server import build_debug_app, client_of, client_of_kind, debug_args, embed

pytestmark = pytest.mark.anyio


def image_uri(height: int, width: int = 4) -> str:
    """The fake embeds an image as its height."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def sound_uri(seconds: int) -> str:
    """The fake embeds a clip as one more than its seconds."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(2 * 16_000 * seconds))
    return f"data:audio/wav;base64,{base64.b64encode(buffer.getvalue()).decode()}"


REQUESTS: list[tuple[str, dict[str, str], list[str], list[float]]] = [
    ("/embeddings", {"modality": "image"}, [image_uri(5), image_uri(9)], [5.0, 9.0]),
    ("/v1/embeddings_image", {}, [image_uri(5), image_uri(9)], [5.0, 9.0]),
    ("/embeddings", {"modality": "audio"}, [sound_uri(1), sound_uri(3)], [2.0, 4.0]),
    ("/embeddings_audio", {}, [sound_uri(1), sound_uri(3)], [2.0, 4.0]),
]


@pytest.mark.parametrize(("path", "members", "sources", "values"), REQUESTS)
async def test_each_source_has_a_vector(
    path: str, members: dict[str, str], sources: list[str], values: list[float]
) -> None:
    async with client_of_kind("embedder") as client:
        body = (await client.post(path, json={"input": sources, **members})).json()
        alone = (await client.post(path, json={"input": sources[0], **members})).json()
        packed = (
            await client.post(path, json={"input": sources, "encoding_format": "base64", **members})
        ).json()
    assert [each["embedding"] for each in body["data"]] == [[value] * 13 for value in values]
    assert list(body) == ["object", "data", "model", "usage", "id", "created"]
    assert body["usage"]["total_tokens"] == sum(values)
    assert alone["data"] == body["data"][:1]
    for each, value in zip(packed["data"], values, strict=True):
        np.testing.assert_array_equal(np.frombuffer(base64.b64decode(each["embedding"]), "<f4"), value)


@pytest.mark.parametrize("path", ["/embeddings_image", "/embeddings_audio"])
async def test_null_is_the_same_as_not_given(path: str) -> None:
    source = image_uri(5) if path.endswith("image") else sound_uri(1)
    names = MediaRequest.model_fields.keys() - {"input"}
    async with client_of_kind("embedder") as client:
        response = await client.post(path, json={"input": source, **dict.fromkeys(names)})
    assert response.status_code == 200


async def test_a_page_model_answers_a_matrix_of_an_image() -> None:
    async with client_of_kind("multivector") as client:
        member = (await embed(client, image_uri(5), modality="image", encoding_format="base64")).json()[
            "data"
        ][0]
    assert member["shape"] == [5, 13]
    assert len(base64.b64decode(member["embedding"])) == 5 * 13 * 4


async def test_dimensions_and_the_served_number_format_count_for_images() -> None:
    app = build_debug_app(debug_args("debug?kind=embedder", embedding_dtype="ubinary"))
    async with client_of(app) as client:
        response = await embed(
            client, image_uri(5), modality="image", dimensions=8, embedding_dtype="ubinary"
        )
    assert response.json()["data"][0]["embedding"] == np.packbits([1] * 8).tolist()


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"chunking": True}, "chunking"),
        ({"late_chunking": True}, "late_chunking"),
    ],
)
async def test_what_an_image_cannot_have_is_refused_rather_than_ignored(
    members: dict[str, Any], param: str
) -> None:
    async with client_of_kind("embedder") as client:
        response = await embed(client, image_uri(5), modality="image", **members)
    assert response.status_code == 422
    assert response.json()["error"]["param"] == param
    assert "is not supported with modality 'image'" in response.json()["error"]["message"]


async def test_a_number_format_with_ranges_from_texts_is_refused_for_images() -> None:
    async with client_of_kind("embedder") as client:
        response = await embed(client, image_uri(5), modality="image", output_dtype="int8")
    assert response.status_code == 400
    assert "not available as int8" in response.json()["error"]["message"]


async def test_outputs_and_number_formats_can_be_asked_of_images() -> None:
    async with client_of_kind("embedder") as client:
        members = {"outputs": ["dense", "multivector"], "output_dtype": "float16"}
        response = await embed(client, image_uri(5), modality="image", **members)
    assert response.json()["data"][0].keys() >= {"embedding", "multivector_embedding"}


async def test_what_says_nothing_about_an_image_is_accepted() -> None:
    members = {"chunking": False, "late_chunking": False, "embedding_dtype": "float", "input_type": "image"}
    async with client_of_kind("embedder") as client:
        response = await embed(client, image_uri(5), modality="image", **members)
    assert response.status_code == 200


@pytest.mark.parametrize(("path", "members"), [each[:2] for each in REQUESTS])
@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("data:image/png;base64,aGVsbG8=", "cannot be read as a"),
        ("data:;base64,", "cannot be read as a"),
        ("not a URL", "input 1 "),
        ("data:image/png;base64,%", "malformed"),
    ],
)
async def test_a_source_that_cannot_be_read_is_named(
    path: str, members: dict[str, str], source: str, part: str
) -> None:
    good = sound_uri(1) if "audio" in path or members.get("modality") == "audio" else image_uri(5)
    async with client_of_kind("embedder") as client:
        response = await client.post(path, json={"input": [good, source], **members})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["message"].startswith("input 1 ")
    assert part in error["message"]
    assert error["param"] == "input"


@pytest.mark.parametrize("address", ["http://127.0.0.1/a.png", "http://169.254.169.254/latest"])
async def test_addresses_inside_are_not_fetched(address: str) -> None:
    async with client_of_kind("embedder") as client:
        response = await embed(client, address, modality="image")
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "input"


async def test_a_tiny_image_is_refused_with_infinitys_words() -> None:
    async with client_of_kind("embedder") as client:
        response = await embed(client, image_uri(2, 2), modality="image")
    assert response.status_code == 400
    assert "Minimum required size is 3x3." in response.json()["error"]["message"]


@pytest.mark.parametrize(("path", "members"), [each[:2] for each in REQUESTS])
async def test_a_request_has_at_most_32(path: str, members: dict[str, str]) -> None:
    async with client_of_kind("embedder") as client:
        response = await client.post(path, json={"input": ["x"] * 33, **members})
    assert response.status_code == 422
    assert response.json()["error"]["message"] == (
        "input: has 33 items, the limit is 32; send several requests"
    )


async def test_a_lower_limit_of_the_server_counts_and_names_its_option() -> None:
    async with client_of_kind("embedder", max_client_batch_size=2) as client:
        response = await client.post("/embeddings_image", json={"input": ["x"] * 3})
    assert response.status_code == 422
    assert "the limit is 2; " in response.json()["error"]["message"]
    assert "--max-client-batch-size" in response.json()["error"]["message"]


@pytest.mark.parametrize(("path", "members"), [each[:2] for each in REQUESTS])
async def test_a_model_of_texts_says_what_it_can(
    client: httpx.AsyncClient, path: str, members: dict[str, str]
) -> None:
    response = await client.post(path, json={"input": "data:;base64,eA", **members})
    assert response.status_code == 400
    assert "it supports embed" in response.json()["error"]["message"]
