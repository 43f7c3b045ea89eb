"""The length of vectors, route by route: what the model computes, or 1 as other servers answer.

A vector of the fake model holds the number of characters in each of 13 dimensions, so it is not of length 1.
"""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest

from infinity_emb.backends import fake
from infinity_emb.backends.base import LoadedModel
from infinity_emb.backends.vector_length import measure_vector_length
from tests.support.tiny_server import build_debug_app, client_of, debug_args

pytestmark = pytest.mark.anyio

RAW = 3 * 13**0.5
IMAGE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAQAAAAECAIAAAAmkwkpAAAAFElEQVR4nGOsCNBggAEmBiSAmwMAMD"
    "QA+HS6plIAAAAASUVORK5CYII="
)
BODIES: dict[str, dict[str, Any]] = {
    "/embeddings": {"input": "abc"},
    "/v1/embeddings": {"input": "abc"},
    "/openai/deployments/debug/embeddings": {"input": "abc"},
    "/openai/v1/embeddings": {"input": "abc"},
    "/pooling": {"input": "abc"},
    "/embed": {"inputs": "abc"},
    "/": {"inputs": "abc"},
    "/v1/embed": {"texts": ["abc"]},
    "/v2/embed": {"texts": ["abc"]},
    "/api/embed": {"input": "abc"},
    "/api/embeddings": {"prompt": "abc"},
}
OWN = [path for path, body in BODIES.items() if "input" in body and path != "/api/embed"]
OTHERS = [path for path in BODIES if path not in OWN]


def find_vector(answer: Any) -> npt.NDArray[np.float64]:
    """Find the first vector of a response of any dialect."""
    while not (isinstance(answer, list) and isinstance(answer[0], float)):
        if isinstance(answer, dict):
            names = ("data", "embedding", "embeddings", "float")
            answer = next(answer[name] for name in names if name in answer)
        else:
            answer = answer[0]
    return np.array(answer)


async def length_of(path: str, policy: str = "auto", **members: Any) -> float:
    app = build_debug_app(debug_args("debug?kind=embedder", normalize=policy))
    async with client_of(app) as client:
        response = await client.post(path, json={**BODIES[path], **members})
    assert response.status_code == 200, response.text
    return float(np.linalg.norm(find_vector(response.json())))


@pytest.mark.parametrize("path", OWN)
async def test_own_routes_answer_what_the_model_computes(path: str) -> None:
    assert await length_of(path) == pytest.approx(RAW)


@pytest.mark.parametrize("path", OTHERS)
async def test_routes_of_servers_that_normalize_answer_vectors_of_length_one(path: str) -> None:
    """Cohere's did not: a store that compares by inner product ranked wrongly, without an error."""
    assert await length_of(path) == pytest.approx(1)


@pytest.mark.parametrize("path", list(BODIES))
async def test_every_route_normalizes_where_the_server_always_does(path: str) -> None:
    assert await length_of(path, "always") == pytest.approx(1)


@pytest.mark.parametrize("path", list(BODIES))
async def test_no_route_normalizes_where_the_server_never_does(path: str) -> None:
    assert await length_of(path, "never") == pytest.approx(RAW)


@pytest.mark.parametrize("policy", ["auto", "always", "never"])
@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/embeddings", "normalized"),
        ("/embeddings", "normalize"),
        ("/embeddings", "use_activation"),
        ("/embeddings", "activation"),
        ("/pooling", "use_activation"),
        ("/embed", "normalize"),
    ],
)
async def test_a_field_of_the_request_takes_precedence(path: str, name: str, policy: str) -> None:
    """vLLM's `use_activation` was ignored on `/embeddings`."""
    assert await length_of(path, policy, **{name: True}) == pytest.approx(1)
    assert await length_of(path, policy, **{name: False}) == pytest.approx(RAW)


async def test_fields_that_contradict_each_other_are_refused() -> None:
    async with client_of(build_debug_app()) as client:
        body = {"input": "a", "normalized": True, "use_activation": False}
        response = await client.post("/embeddings", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (422, "use_activation")


async def test_images_are_normalized_too() -> None:
    app = build_debug_app(debug_args("debug?kind=embedder", normalize="always"))
    async with client_of(app) as client:
        response = await client.post("/embeddings", json={"input": IMAGE, "modality": "image"})
    assert np.linalg.norm(find_vector(response.json())) == pytest.approx(1)


async def test_each_vector_of_a_token_is_normalized() -> None:
    app = build_debug_app(debug_args("debug?kind=multivector", normalize="always"))
    async with client_of(app) as client:
        response = await client.post("/embeddings", json={"input": "abc"})
    [entry] = response.json()["data"]
    np.testing.assert_allclose(np.linalg.norm(entry["embedding"], axis=1), [1, 1, 1], rtol=1e-6)


async def answer_of(client: httpx.AsyncClient, path: str, **body: Any) -> Any:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def test_bytes_are_made_of_the_normalized_vectors() -> None:
    """The ranges of int8 come from calibration vectors, which must be of the same length."""
    texts = ["a", "abc" * 20]
    args = [debug_args("raw?kind=embedder"), debug_args("unit?kind=embedder", normalize="always")]
    async with client_of(build_debug_app(*args)) as client:
        own = await answer_of(client, "/embeddings", model="unit", input=texts, embedding_dtype="int8")
        asked = await answer_of(
            client, "/embeddings", model="raw", input=texts, embedding_dtype="int8", normalized=True
        )
        cohere = await answer_of(client, "/v2/embed", model="raw", texts=texts, embedding_types=["int8"])
        raw = await answer_of(client, "/embeddings", model="raw", input=texts, embedding_dtype="int8")
        coded = await answer_of(client, "/v2/embed", model="raw", texts=texts, embedding_types=["base64"])
    vectors = [entry["embedding"] for entry in own["data"]]
    assert vectors == [entry["embedding"] for entry in asked["data"]] == cohere["embeddings"]["int8"]
    assert vectors[0] == vectors[1], "the fake model's vectors all have one direction"
    assert raw["data"][0] != raw["data"][1]["embedding"]
    decoded = np.frombuffer(base64.b64decode(coded["embeddings"]["base64"][0]), dtype="<f4")
    assert np.linalg.norm(decoded) == pytest.approx(1)


# A model whose own files normalize.


@pytest.fixture
def _unit_model(monkeypatch: pytest.MonkeyPatch) -> None:
    compute = fake.FakeBackend._compute_output

    def compute_unit(self: Any, name: Any, batch: Any) -> Any:
        outputs = compute(self, name, batch)
        return outputs / np.linalg.norm(outputs, axis=1, keepdims=True) if name == "dense" else outputs

    def load_unit_model(*args: Any) -> LoadedModel:
        model = load(*args)
        return measure_vector_length(replace(model, info=replace(model.info, is_normalized=None)))

    load = fake.load_model
    monkeypatch.setattr(fake, "load_model", load_unit_model)
    monkeypatch.setattr(fake.FakeBackend, "_compute_output", compute_unit)


@pytest.mark.usefixtures("_unit_model")
@pytest.mark.parametrize(
    ("path", "name"), [("/embeddings", "use_activation"), ("/pooling", "use_activation")]
)
async def test_vectors_that_the_model_itself_normalizes_cannot_be_had_otherwise(path: str, name: str) -> None:
    async with client_of(build_debug_app()) as client:
        response = await client.post(path, json={"input": "abc", name: False})
        assert (await client.post(path, json={"input": "abc", name: True})).status_code == 200
    assert response.status_code == 422
    assert "the files of this model normalize its vectors" in response.json()["error"]["message"]


@pytest.mark.usefixtures("_unit_model")
async def test_a_unit_model_is_listed_as_such_and_nothing_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("INFO", logger="infinity_emb"):
        app = build_debug_app()
    async with client_of(app) as client:
        [entry] = (await client.get("/models")).json()["data"]
    assert entry["is_normalized"] is True
    assert "length 1" not in caplog.text


@pytest.mark.parametrize(
    ("kind", "normalize", "listed", "is_logged"),
    [
        ("embedder", "auto", False, True),
        ("embedder", "always", True, False),
        ("embedder", "never", False, False),
        ("reranker", "always", None, False),
    ],
)
async def test_models_and_the_log_say_where_vectors_are_not_of_length_one(
    kind: str, normalize: str, listed: bool | None, is_logged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="infinity_emb"):
        app = build_debug_app(debug_args(f"debug?kind={kind}", normalize=normalize))
    async with client_of(app) as client:
        [entry] = (await client.get("/models")).json()["data"]
    assert entry["is_normalized"] is listed
    assert ("do not have length 1" in caplog.text) is is_logged
