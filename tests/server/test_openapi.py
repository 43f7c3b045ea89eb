from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest
from fastapi.openapi.models import OpenAPI
from pydantic import TypeAdapter

from infinity_emb._version import __version__
from infinity_emb.server.dialects.cohere.errors import CohereError
from infinity_emb.server.dialects.cohere.schemas import (
    CohereEmbedResponse,
    CohereFloatsResponse,
    CohereRerankResponse,
)
from infinity_emb.server.dialects.nim import NimHealth, NimRankingResponse
from infinity_emb.server.dialects.ollama.errors import OllamaError
from infinity_emb.server.dialects.ollama.schemas import (
    OllamaEmbedResponse,
    OllamaPromptResponse,
    OllamaShow,
    OllamaTags,
    OllamaVersion,
)
from infinity_emb.server.dialects.tei.errors import TeiError
from infinity_emb.server.dialects.tei.info import TeiInfo
from infinity_emb.server.dialects.tei.schemas import TeiPredictions, TeiRanked, TeiVectors
from infinity_emb.server.dialects.tei.sparse import SparseResponse
from infinity_emb.server.dialects.vllm.schemas import (
    VllmClassifyResponse,
    VllmPoolingResponse,
    VllmScoreResponse,
)
from infinity_emb.server.dialects.voyage import VoyageError, VoyageRerankResponse
from infinity_emb.server.responses.errors import RETRY_HEADERS
from infinity_emb.server.schemas.classify import ClassifyResponse
from infinity_emb.server.schemas.embeddings import EmbeddingResponse
from infinity_emb.server.schemas.models import ModelEntry, ModelList
from infinity_emb.server.schemas.rerank import RerankResponse
from infinity_emb.server.schemas.system import Health, Readiness
from tests.support.tiny_server import build_debug_app, client_of, debug_args

pytestmark = pytest.mark.anyio

TASKS = (
    *("/embeddings", "/multi-vector", "/embeddings_image", "/embeddings_audio"),
    *("/rerank", "/v1/rerank", "/classify", "/embed_sparse"),
    *("/embed", "/predict", "/similarity", "/", "/embed_all", "/tokenize", "/decode"),
    *("/v1/embed", "/v2/embed", "/v2/rerank"),
    *("/api/embed", "/api/embeddings", "/api/show", "/api/pull", "/ranking"),
    *("/score", "/pooling", "/detokenize"),
)
KINDS = ("embedder", "reranker", "classifier")
TEI_PATHS = (
    *("/embed", "/embed_sparse", "/predict", "/similarity", "/", "/rerank", "/v1/rerank"),
    *("/embed_all", "/tokenize", "/decode"),
)


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The document of a server without keys."""
    return build_debug_app().openapi()


def test_the_document_names_the_server_and_its_version(document: dict[str, Any]) -> None:
    info = document["info"]
    assert info["title"] == "Infinity - Embedding Inference Server"
    assert info["version"] == __version__
    assert info["license"] == {"name": "MIT License", "identifier": "MIT"}


def test_the_document_is_valid_openapi_and_its_references_lead_somewhere(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1.")
    OpenAPI.model_validate(document)
    for reference in set(re.findall(r'"\$ref": ?"#/components/schemas/([^"]+)"', json.dumps(document))):
        assert reference in document["components"]["schemas"]


def test_each_route_is_shown_once_with_an_operation_id_of_its_own(document: dict[str, Any]) -> None:
    paths = document["paths"]
    ids = {path: [each["operationId"] for each in methods.values()] for path, methods in paths.items()}
    assert ids == {
        "/embeddings": ["embeddings"],
        "/multi-vector": ["multi_vector"],
        "/embeddings_image": ["embeddings_image"],
        "/embeddings_audio": ["embeddings_audio"],
        "/rerank": ["rerank"],
        "/v1/rerank": ["rerank_v1"],
        "/classify": ["classify"],
        "/embed_sparse": ["embed_sparse"],
        "/embed": ["tei_embed"],
        "/predict": ["tei_predict"],
        "/similarity": ["tei_similarity"],
        "/": ["tei_any"],
        "/info": ["tei_info"],
        "/embed_all": ["tei_embed_all"],
        "/tokenize": ["tei_tokenize"],
        "/decode": ["tei_decode"],
        "/v1/embed": ["cohere_embed_v1"],
        "/v2/embed": ["cohere_embed"],
        "/v2/rerank": ["cohere_rerank"],
        "/api/embed": ["ollama_embed"],
        "/api/embeddings": ["ollama_embeddings"],
        "/api/show": ["ollama_show"],
        "/api/tags": ["ollama_tags"],
        "/api/ps": ["ollama_ps"],
        "/api/pull": ["ollama_pull"],
        "/api/version": ["ollama_version"],
        "/ranking": ["nim_ranking"],
        "/score": ["vllm_score"],
        "/pooling": ["vllm_pooling"],
        "/detokenize": ["vllm_detokenize"],
        "/version": ["vllm_version"],
        "/models": ["models"],
        "/models/{model_id}": ["model"],
        "/health": ["health"],
        "/ready": ["ready"],
        "/ping": ["ping"],
        "/metrics": ["metrics"],
        "/v1/health/live": ["nim_health_live"],
        "/v1/health/ready": ["nim_health_ready"],
    }


def test_infinitys_older_routes_are_marked_as_deprecated(document: dict[str, Any]) -> None:
    paths = document["paths"]
    deprecated = {
        path for path, methods in paths.items() for each in methods.values() if each.get("deprecated")
    }
    assert deprecated == {"/embeddings_image", "/embeddings_audio"}


async def test_every_example_of_every_route_works_when_pasted() -> None:
    app = build_debug_app(*(debug_args(f"{kind}?kind={kind}") for kind in KINDS))
    async with client_of(app) as client:
        document = (await client.get("/openapi.json")).json()
        for path in TASKS:
            content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
            assert content["examples"]
            for name, example in content["examples"].items():
                assert example["summary"]
                response = await client.post(path, json=example["value"])
                assert response.status_code == 200, (path, name, response.text)


def test_every_field_of_every_request_is_described(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    bodies = json.dumps([document["paths"][path]["post"]["requestBody"] for path in TASKS])
    requests = set(re.findall(r'"\$ref": ?"#/components/schemas/([^"]+)"', bodies))
    assert requests == {name for name in schemas if name.endswith("Request")}
    for schema in (schemas[name] for name in requests):
        for name, field in schema["properties"].items():
            assert field.get("description"), name


def test_every_schema_is_used_and_described_with_its_fields(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document))) == set(schemas)
    for name, schema in schemas.items():
        assert schema["description"], name
        for field_name, field in schema.get("properties", {}).items():
            # Constants explain themselves, and objects are described where they are defined.
            is_clear = "const" in field or "enum" in field or "#/components/schemas/" in json.dumps(field)
            assert is_clear or field.get("description"), (name, field_name)


def test_operations_are_grouped_and_have_a_short_summary(document: dict[str, Any]) -> None:
    paths = document["paths"]
    operations = [operation for methods in paths.values() for operation in methods.values()]
    for operation in operations:
        assert 0 < len(operation["summary"]) <= 60, operation["operationId"]
        assert len(operation["tags"]) == 1
        assert operation["tags"][0]
    assert len({operation["tags"][0] for operation in operations}) == 8


@pytest.mark.parametrize("path", TASKS)
def test_every_error_that_can_happen_is_documented(document: dict[str, Any], path: str) -> None:
    responses = document["paths"][path]["post"]["responses"]
    statuses = {"200", "400", "404", "413", "415", "422", "429", "500", "503", "504"}
    assert set(responses) - {"424"} == statuses
    assert ("424" in responses) == (path in TEI_PATHS)
    for status in ("429", "503"):
        assert set(responses[status]["headers"]) == set(RETRY_HEADERS)
    for status in ("400", "404", "413", "415", "422"):
        assert set(responses[status]["headers"]) == {"x-should-retry"}


def test_the_key_is_asked_for_in_the_document_where_one_is_set(document: dict[str, Any]) -> None:
    assert "securitySchemes" not in document["components"]
    document = build_debug_app(api_key="key").openapi()
    assert document["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    for path in (*TASKS, "/models", "/models/{model_id}"):
        [operation] = document["paths"][path].values()
        assert operation["security"] == [{"HTTPBearer": []}]
        assert "401" in operation["responses"]
    assert "security" not in document["paths"]["/health"]["get"]


async def test_bodies_are_as_documented() -> None:
    app = build_debug_app(*(debug_args(f"{kind}?kind={kind}") for kind in KINDS))
    everything = {"input": "a", "outputs": ["dense", "sparse", "multivector"], "encoding_format": "base64"}
    all_types = {"embedding_types": ["float", "int8", "uint8", "binary", "ubinary", "base64"]}
    voyages = {"query": "q", "documents": ["d"], "top_k": None}
    ranking = {"query": {"text": "q"}, "passages": [{"text": "a"}]}
    async with client_of(app) as client:
        bodies: list[tuple[Any, httpx.Response]] = [
            (EmbeddingResponse, await client.post("/embeddings", json={"input": "a"})),
            (EmbeddingResponse, await client.post("/embeddings", json=everything)),
            (EmbeddingResponse, await client.post("/embeddings", json={"input": "a", "late_chunking": True})),
            (EmbeddingResponse, await client.post("/multi-vector", json={"input": "a"})),
            (RerankResponse, await client.post("/rerank", json={"query": "q", "documents": ["d"]})),
            (VoyageRerankResponse, await client.post("/rerank", json=voyages)),
            (VoyageError, await client.post("/embeddings", json={"truncation": True})),
            (ClassifyResponse, await client.post("/classify", json={"input": "a"})),
            (SparseResponse, await client.post("/embed_sparse", json={"inputs": "a"})),
            (TeiVectors, await client.post("/embed", json={"inputs": "a"})),
            (TeiPredictions, await client.post("/predict", json={"inputs": "a"})),
            (list[TeiRanked], await client.post("/rerank", json={"query": "q", "texts": ["a"]})),
            (TeiInfo, await client.get("/info?model=reranker")),
            (TeiError, await client.post("/embed", json={})),
            (CohereFloatsResponse, await client.post("/v1/embed", json={"texts": ["a"]})),
            (CohereEmbedResponse, await client.post("/v2/embed", json={"texts": ["a"], **all_types})),
            (CohereRerankResponse, await client.post("/v2/rerank", json={"query": "q", "documents": ["d"]})),
            (CohereError, await client.post("/v2/rerank", json={})),
            (OllamaEmbedResponse, await client.post("/api/embed", json={"input": "a"})),
            (OllamaPromptResponse, await client.post("/api/embeddings", json={"prompt": "a"})),
            (OllamaError, await client.post("/api/embed", json={"model": "other"})),
            (OllamaTags, await client.get("/api/tags")),
            (NimRankingResponse, await client.post("/ranking", json=ranking)),
            (NimHealth, await client.get("/v1/health/live")),
            (OllamaShow, await client.post("/api/show", json={"model": "embedder"})),
            (OllamaVersion, await client.get("/api/version")),
            (VllmScoreResponse, await client.post("/score", json={"text_1": "q", "text_2": ["d"]})),
            (VllmPoolingResponse, await client.post("/pooling", json={"input": "a", "task": "token_embed"})),
            (VllmClassifyResponse, await client.post("/classify", json={"input": "a", "activation": True})),
            (ModelList, await client.get("/models")),
            (ModelEntry, await client.get("/models/reranker")),
            (Health, await client.get("/health")),
            (Readiness, await client.get("/ready")),
        ]
    for schema, response in bodies:
        adapter = TypeAdapter(schema)
        parsed = adapter.validate_json(response.content, strict=True)
        assert adapter.dump_python(parsed, mode="json", exclude_unset=True) == response.json()
