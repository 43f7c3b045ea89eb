"""All endpoints of the API, in the order of the OpenAPI document."""

from __future__ import annotations

from starlette.responses import Response

from infinity_emb.server.dialects import azure, nim, voyage
from infinity_emb.server.dialects.cohere import routes as cohere
from infinity_emb.server.dialects.ollama import models as ollama_models
from infinity_emb.server.dialects.ollama import routes as ollama
from infinity_emb.server.dialects.tei import info as tei_info
from infinity_emb.server.dialects.tei import routes as tei
from infinity_emb.server.dialects.tei import sparse as tei_sparse
from infinity_emb.server.dialects.tei import tokens as tei_tokens
from infinity_emb.server.dialects.tei.errors import ERRORS as TEI_ERRORS
from infinity_emb.server.dialects.tei.schemas import TeiAnyRequest
from infinity_emb.server.dialects.vllm import routes as vllm
from infinity_emb.server.dialects.vllm import tokens as vllm_tokens
from infinity_emb.server.dialects.vllm.schemas import VllmScoreRequest, VllmScoreResponse
from infinity_emb.server.requests.call import Call
from infinity_emb.server.routes import classify, embeddings, models, rerank, system
from infinity_emb.server.routing import Endpoint, Form, add_forms, tag_endpoints
from infinity_emb.server.schemas.embeddings import EmbeddingRequest, EmbeddingResponse
from infinity_emb.server.schemas.rerank import RerankObjectsResponse, RerankRequest


async def invocations(body: TeiAnyRequest, call: Call) -> Response:
    """Run the main task of the model."""
    return await tei.tei_any(body, call)


# SageMaker sends every request to one path, in the dialects of TEI and of vLLM.
# Source: https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html
SAGEMAKER_FORMS = [
    Form(invocations, TeiAnyRequest, tei.ANY_RESPONSE, errors=TEI_ERRORS),
    Form(embeddings.embeddings, EmbeddingRequest, EmbeddingResponse, discriminators=frozenset({"input"})),
    Form(
        vllm.vllm_score,
        VllmScoreRequest,
        VllmScoreResponse,
        discriminators=frozenset({"queries", "data_1", "text_1"}),
    ),
    Form(rerank.rerank_v1, RerankRequest, RerankObjectsResponse, discriminators=frozenset({"documents"})),
]
# They require an API key if the server has one.
API_ENDPOINTS = add_forms(
    [
        *tag_endpoints(
            "Embeddings, reranking and classification",
            *embeddings.ENDPOINTS,
            *rerank.ENDPOINTS,
            *classify.ENDPOINTS,
        ),
        *tag_endpoints("Models", *models.ENDPOINTS),
        *tag_endpoints(
            "Text Embeddings Inference",
            *tei.ENDPOINTS,
            *tei_sparse.ENDPOINTS,
            *tei_tokens.ENDPOINTS,
            *tei_info.ENDPOINTS,
        ),
        *tag_endpoints("Cohere", *cohere.ENDPOINTS),
        *tag_endpoints("Ollama", *ollama.ENDPOINTS, *ollama_models.ENDPOINTS),
        *tag_endpoints("vLLM", *vllm.ENDPOINTS, *vllm_tokens.ENDPOINTS),
        *tag_endpoints("NVIDIA NIM", *nim.ENDPOINTS),
        *azure.ENDPOINTS,
        Endpoint("/invocations", SAGEMAKER_FORMS, is_at_v1=False, is_documented=False),
    ],
    voyage.FORMS,
    tei.FORMS,
    vllm.FORMS,
    vllm_tokens.FORMS,
    cohere.FORMS,
)

# Open to everyone, at fixed paths.
HEALTH_ENDPOINTS = tag_endpoints(system.TAG, *system.ENDPOINTS, *nim.HEALTH_ENDPOINTS)
OPEN_PATHS = ("/", *(endpoint.path for endpoint in HEALTH_ENDPOINTS))
# Orchestrators and Prometheus request these every few seconds.
PROBE_PATHS = (*OPEN_PATHS[1:], system.METRICS_PATH)
