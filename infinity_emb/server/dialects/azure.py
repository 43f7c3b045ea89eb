"""Azure's paths: the deployment names the model, and `/openai/v1` is OpenAI's API.

Sources: https://learn.microsoft.com/azure/ai-services/openai/reference
https://learn.microsoft.com/azure/ai-services/openai/api-version-lifecycle
"""

from __future__ import annotations

from dataclasses import replace

from starlette.responses import Response

from infinity_emb.server.requests.call import Call
from infinity_emb.server.routes import models
from infinity_emb.server.routes.embeddings import embeddings
from infinity_emb.server.routing import Endpoint, Form
from infinity_emb.server.schemas.embeddings import EmbeddingRequest, EmbeddingResponse


async def azure_embeddings(body: EmbeddingRequest, call: Call) -> Response:
    """Embed texts, images or audio with the model in the path.

    `AzureOpenAI(azure_endpoint="http://localhost:7997", api_key="any", api_version="any")` connects to this
    server. The field `model` and the query `api-version` are ignored.
    """
    deployment: str = call.request.path_params["deployment"]
    return await embeddings(body.model_copy(update={"model": deployment}), call)


_FORMS = [Form(embeddings, EmbeddingRequest, EmbeddingResponse)]

ENDPOINTS = [
    replace(endpoint, is_at_v1=False, is_documented=False)
    for endpoint in [
        Endpoint(
            "/openai/deployments/{deployment:path}/embeddings",
            [Form(azure_embeddings, EmbeddingRequest, EmbeddingResponse)],
        ),
        Endpoint("/openai/v1/embeddings", _FORMS),
        *(
            replace(endpoint, path=f"{base}{endpoint.path}")
            for base in ("/openai", "/openai/v1")
            for endpoint in models.ENDPOINTS
        ),
    ]
]
