from __future__ import annotations

import dataclasses

import httpx
import pytest

from infinity_emb.types import ModelInfo, ModelKind
from tests.support.tiny_server import build_debug_app, client_of, debug_args

pytestmark = pytest.mark.anyio


async def test_models_have_infinitys_fields_and_ours(client: httpx.AsyncClient) -> None:
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
        "kind": "embedder",
        "outputs": ["dense"],
        "labels": [],
        "activation": "none",
        "similarity": "cosine",
        "embedding_dimension": 13,
        "embedding_dtype": "float32",
        "max_tokens": 8192,
        "max_model_len": 8192,
        "is_normalized": False,
        "max_batch_tokens": 16384,
        "truncation_side": "right",
        "tasks": [],
        "prompts": {},
        "default_prompt_name": None,
        "engine": "debugengine",
        "engine_reason": "--engine, or its default",
        "dtype": "float32",
        "dtype_reason": "the only dtype of this engine",
        "device": "cpu",
        "attention": "none",
        "attention_reason": "a fake model",
        "pooling": "none",
        "revision": None,
        "origin": "built in",
        "weights_fingerprint": "",
        "graph_file": "",
        "is_loaded": True,
        "source": "built in",
        "files_version": "",
        "graph": "",
        "loaded": True,
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
    assert "Available model names are 'debug'" in response.json()["error"]["message"]


async def test_an_entry_has_everything_that_was_detected() -> None:
    async with client_of(build_debug_app(debug_args("debug?kind=classifier"))) as client:
        entry = (await client.get("/models/debug")).json()
    assert {field.name for field in dataclasses.fields(ModelInfo)} <= entry.keys()
    assert (entry["kind"], entry["labels"]) == ("classifier", ["characters", "none"])
    assert (entry["activation"], entry["outputs"]) == ("halving", [])


@pytest.mark.parametrize("kind", list(ModelKind))
async def test_an_entry_begins_with_what_the_model_is_made_for(kind: ModelKind) -> None:
    app = build_debug_app(debug_args(f"debug?kind={kind}"))
    async with client_of(app) as client:
        entry = (await client.get("/models/debug")).json()
    assert entry["capabilities"] == list(app.engine_array[0].info.capabilities)
