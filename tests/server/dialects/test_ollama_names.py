"""Names on Ollama's routes: registry, namespace and tag may be left out or given.

Source of what is equal: https://github.com/ollama/ollama/blob/main/types/model/name.go
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import numpy as np
import pytest

from tests.support.tiny_server import build_debug_app, client_of, debug_args

pytestmark = pytest.mark.anyio

MODELS = {
    "minilm": "embedder",
    "sized:33m": "embedder",
    "org/model": "embedder",
    "library/given": "embedder",
    "library/both": "embedder",
    "both": "reranker",
}
SAME = {
    "minilm": ["library/minilm", "library/minilm:latest", "LIBRARY/MiniLM", "library/minilm:query"],
    "sized:33m": ["library/sized:33m", "registry.ollama.ai/library/sized:33M"],
    "org/model": ["registry.ollama.ai/org/model", "https://registry.ollama.ai/Org/Model:latest"],
    "library/given": ["given", "given:latest", "registry.ollama.ai/library/given", "http://given"],
    "library/both": ["library/both:latest", "registry.ollama.ai/library/both"],
    "both": ["both:latest"],
}
UNKNOWN = [
    "library/other",
    "library/model",
    "other/minilm",
    "library/sized",
    "library/minilm:33m",
    "minilm:33m",
    "library/library/minilm",
    "registry.ollama.ai/minilm/x",
    "hf.co/org/model",
    "library/",
    "library",
    "https://",
    "/minilm",
]


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    models = [
        debug_args(f"{number}?kind={kind}", served_model_name=name)
        for number, (name, kind) in enumerate(MODELS.items())
    ]
    async with client_of(build_debug_app(*models)) as client:
        yield client


@pytest.mark.parametrize(("served", "name"), [(served, each) for served in SAME for each in SAME[served]])
async def test_what_ollama_fills_in_may_be_given_and_left_out(
    served: str, name: str, client: httpx.AsyncClient
) -> None:
    """`library/minilm` was a 404 on a server of several models."""
    shown = await client.post("/api/show", json={"model": name})
    assert shown.json()["details"]["family"] == MODELS[served]
    assert (await client.post("/api/pull", json={"name": name})).json() == {"status": "success"}
    if MODELS[served] != "embedder":
        return
    embedded = (await client.post("/api/embed", json={"model": name, "input": "a"})).json()
    expected = (await client.post("/api/embed", json={"model": served, "input": "a"})).json()
    assert embedded["model"] == name
    np.testing.assert_allclose(embedded["embeddings"], expected["embeddings"])
    older = await client.post("/api/embeddings", json={"model": name, "prompt": "a"})
    np.testing.assert_allclose([older.json()["embedding"]], expected["embeddings"])


@pytest.mark.parametrize("name", UNKNOWN)
async def test_another_namespace_or_tag_is_another_model(name: str, client: httpx.AsyncClient) -> None:
    bodies = {
        "/api/embed": {"input": "a"},
        "/api/embeddings": {"prompt": "a"},
        "/api/show": {},
        "/api/pull": {},
    }
    for path, body in bodies.items():
        response = await client.post(path, json={"model": name, **body})
        assert (response.status_code, list(response.json())) == (404, ["error"]), path
        assert f'model "{name}" not found' in response.json()["error"]


async def test_other_dialects_have_no_namespace(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/embeddings", json={"model": "library/minilm", "input": "a"})
    assert response.status_code == 404
