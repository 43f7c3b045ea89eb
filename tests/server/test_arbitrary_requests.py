"""Whatever JSON a member holds, the answer is a success or says what is wrong with the request."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from infinity_emb.server.dialects.tei.sparse import SparseRequest
from infinity_emb.server.dialects.voyage import VoyageRerankRequest
from infinity_emb.server.schemas.classify import ClassifyRequest
from infinity_emb.server.schemas.embeddings import EmbeddingRequest, MediaRequest
from infinity_emb.server.schemas.rerank import RerankRequest
from tests.support.tiny_server import build_debug_app, client_of, debug_args

pytestmark = pytest.mark.anyio

KINDS = ("embedder", "reranker", "classifier", "multivector")
REQUESTS: list[tuple[str, type[BaseModel]]] = [
    ("/embeddings", EmbeddingRequest),
    ("/embeddings_image", MediaRequest),
    ("/embeddings_audio", MediaRequest),
    ("/multi-vector", EmbeddingRequest),
    ("/rerank", RerankRequest),
    ("/rerank", VoyageRerankRequest),
    ("/classify", ClassifyRequest),
    ("/embed_sparse", SparseRequest),
]

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
texts = st.text() | st.lists(st.text(), min_size=1, max_size=3)
objects = st.dictionaries(st.sampled_from(["text", "image"]), st.text(), min_size=1)
# Values that get past the schema, so that members meet each other and the engine.
FITTING: dict[str, st.SearchStrategy[Any]] = {
    "model": st.sampled_from([*KINDS, "embedder:query", "multivector-document"]),
    "input": texts | st.lists(st.text() | st.tuples(st.text(), st.text()) | objects, min_size=1, max_size=3),
    "inputs": texts,
    "documents": st.lists(st.text() | st.fixed_dictionaries({"text": st.text()}), min_size=1, max_size=3),
    "query": st.text(),
    "dimensions": st.integers(0, 14),
    "output_dimension": st.integers(0, 14),
    "encoding_format": st.sampled_from(["float", "base64", "bytes", "bytes_only"]),
    "modality": st.sampled_from(["text", "image", "audio"]),
    "input_type": st.sampled_from(["query", "document", "classification"]),
    "task": st.sampled_from(["query", "document", "classification"]),
    "prompt": st.text(),
    "instruction": st.text(),
    "prompt_name": st.sampled_from(["query", "document"]),
    "truncate": st.sampled_from([True, False, "NONE", "START", "end"]),
    "truncation": st.sampled_from([True, False, "NONE", "START", "end"]),
    "truncate_prompt_tokens": st.integers(1) | st.just(-1),
    "truncation_side": st.sampled_from(["left", "right"]),
    "truncation_direction": st.sampled_from(["Left", "right"]),
    "outputs": st.lists(st.sampled_from(["dense", "sparse", "multivector"]), min_size=1, max_size=3),
    "embedding_dtype": st.sampled_from(["float", "float16", "int8", "uint8", "binary", "ubinary"]),
    "output_dtype": st.sampled_from(["float", "float16", "int8", "uint8", "binary", "ubinary"]),
    "embedding_type": st.sampled_from(["float", "int8", "binary", "base64", ["ubinary"], ["base64"]]),
    "embed_dtype": st.sampled_from(["float32", "float16", "bfloat16", "fp8_e4m3", "fp8_e5m2"]),
    "endianness": st.sampled_from(["native", "big", "little"]),
    "normalized": st.booleans(),
    "normalize": st.booleans(),
    "use_activation": st.booleans(),
    "max_tokens_per_query": st.integers(1) | st.just(-1),
    "max_tokens_per_doc": st.integers(1) | st.just(-1),
    "return_multivector": st.booleans(),
    "chunking": st.booleans(),
    "late_chunking": st.booleans() | st.fixed_dictionaries({"chunk_size": st.integers(1, 2**31 - 1)}),
    "top_n": st.integers(0),
    "rank_fields": st.lists(st.text(), max_size=3),
    "priority": st.sampled_from(["interactive", "bulk"]) | st.integers(),
    "timeout": st.integers(60, 10**6),
    "top_k": st.integers(0),
    "raw_scores": st.booleans(),
    "return_documents": st.booleans(),
    "user": st.text(),
}
REQUIRED = {"input", "inputs", "documents", "query"}


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A path, and members of which most fit."""
    path, schema = draw(st.sampled_from(REQUESTS))
    body = {}
    for name in schema.model_fields:
        if name in REQUIRED or draw(st.integers(0, 3)) == 0:
            body[name] = draw(anything if draw(st.integers(0, 9)) == 0 else FITTING[name])
    return path, body


@pytest.fixture
async def servers(anyio_backend: str) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(build_debug_app(*(debug_args(f"{kind}?kind={kind}") for kind in KINDS))) as client:
        yield client


def test_every_field_of_every_request_is_tried() -> None:
    assert FITTING.keys() == {name for _, schema in REQUESTS for name in schema.model_fields}


@given(request=requests())
@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_no_request_is_answered_with_an_internal_error(
    servers: httpx.AsyncClient, request: tuple[str, dict[str, Any]]
) -> None:
    path, body = request
    response = await servers.post(path, json=body)
    assert response.status_code in (200, 400, 422, 424), response.text  # 424 where TEI answers it
    if response.status_code != 200:
        answered = response.json()
        if not isinstance(answered.get("error"), dict):  # of another dialect, told by its members
            assert isinstance(answered.get("detail") or answered["error"], str)
            return
        error = answered["error"]
        assert error["message"]
        # `dimensions` stands for its other name too, and `/multi-vector` for a member.
        assert error["param"] is None or error["param"] in {
            *body,
            "model",
            "dimensions",
            "return_multivector",
        }


@given(
    value=anything,
    path_and_name=st.sampled_from(
        [(path, name) for path, schema in REQUESTS for name in schema.model_fields]
    ),
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_value_of_one_field_is_served_or_refused(
    servers: httpx.AsyncClient, value: Any, path_and_name: tuple[str, str]
) -> None:
    path, name = path_and_name
    kind = {"/rerank": "reranker", "/classify": "classifier"}.get(path, "embedder")
    fitting = {"input": "a", "inputs": "a", "documents": ["a"], "query": "a", "model": kind}
    schema = dict(REQUESTS)[path]
    body = {each: fitting[each] for each in fitting if each in schema.model_fields} | {name: value}
    response = await servers.post(
        path, content=json.dumps(body), headers={"content-type": "application/json"}
    )
    assert response.status_code in (200, 400, 422, 424), response.text  # 424 where TEI answers it
