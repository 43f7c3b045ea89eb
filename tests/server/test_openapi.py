from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest
from fastapi.openapi.models import OpenAPI
from pydantic import BaseModel

from infinity_emb import __version__
from infinity_emb.server.schemas import EmbeddingResponse, Health, ModelEntry, ModelList, Readiness
from tests.server.tiny_server import build_debug_app, client_of

pytestmark = pytest.mark.anyio


async def document_of(client: httpx.AsyncClient) -> dict[str, Any]:
    document: dict[str, Any] = (await client.get("/openapi.json")).json()
    return document


async def test_the_document_names_the_server_and_its_version(client: httpx.AsyncClient) -> None:
    info = (await document_of(client))["info"]
    assert info["title"] == "Infinity - Embedding Inference Server"
    assert info["version"] == __version__
    assert info["license"] == {"name": "MIT License", "identifier": "MIT"}


async def test_the_document_is_valid_openapi_and_its_references_lead_somewhere(
    client: httpx.AsyncClient,
) -> None:
    document = await document_of(client)
    assert document["openapi"].startswith("3.1.")
    OpenAPI.model_validate(document)
    for reference in set(re.findall(r'"\$ref": ?"#/components/schemas/([^"]+)"', json.dumps(document))):
        assert reference in document["components"]["schemas"]


async def test_each_route_is_shown_once_with_an_operation_id_of_its_own(client: httpx.AsyncClient) -> None:
    paths = (await document_of(client))["paths"]
    ids = {path: [each["operationId"] for each in methods.values()] for path, methods in paths.items()}
    assert ids == {
        "/embeddings": ["embeddings"],
        "/models": ["models"],
        "/models/{model_id}": ["model"],
        "/health": ["health"],
        "/ready": ["ready"],
        "/metrics": ["metrics"],
    }


async def test_every_example_works_when_pasted(client: httpx.AsyncClient) -> None:
    operation = (await document_of(client))["paths"]["/embeddings"]["post"]
    examples = operation["requestBody"]["content"]["application/json"]["examples"]
    assert len(examples) >= 3
    for example in examples.values():
        assert (await client.post("/embeddings", json=example["value"])).status_code == 200


async def test_every_error_that_can_happen_is_documented(client: httpx.AsyncClient) -> None:
    responses = (await document_of(client))["paths"]["/embeddings"]["post"]["responses"]
    assert set(responses) == {"200", "400", "413", "415", "422", "429", "500", "503"}
    assert "Retry-After" in responses["429"]["headers"]


async def test_the_key_is_asked_for_in_the_document_where_one_is_set(client: httpx.AsyncClient) -> None:
    assert "securitySchemes" not in (await document_of(client))["components"]
    async with client_of(build_debug_app(api_key="key")) as closed:
        document = await document_of(closed)
    assert document["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    for path in ("/embeddings", "/models", "/models/{model_id}"):
        [operation] = document["paths"][path].values()
        assert operation["security"] == [{"HTTPBearer": []}]
        assert "401" in operation["responses"]
    assert "security" not in document["paths"]["/health"]["get"]


async def test_bodies_are_as_documented(client: httpx.AsyncClient) -> None:
    bodies: list[tuple[type[BaseModel], httpx.Response]] = [
        (EmbeddingResponse, await client.post("/embeddings", json={"input": "a"})),
        (ModelList, await client.get("/models")),
        (ModelEntry, await client.get("/models/debug")),
        (Health, await client.get("/health")),
        (Readiness, await client.get("/ready")),
    ]
    for schema, response in bodies:
        parsed = schema.model_validate_json(response.content, strict=True)
        assert parsed.model_dump() == response.json()
