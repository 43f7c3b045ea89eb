"""TEI's `/embed_sparse`: sparse vectors."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field
from starlette.responses import Response

from infinity_emb.engine.results import EmbedOptions
from infinity_emb.server.dialects.tei.errors import ERRORS
from infinity_emb.server.dialects.tei.schemas import PROMPT_NAME, TeiRequest, read_truncation
from infinity_emb.server.dialects.tei.timing_headers import Stopwatch
from infinity_emb.server.requests.call import Call
from infinity_emb.server.responses.json_vectors import sparse_response
from infinity_emb.server.routing import Endpoint, Form
from infinity_emb.server.schemas.inputs import TextsOrIds
from infinity_emb.types import TokenIdPolicy


class SparseRequest(TeiRequest):
    """Texts; `model` is an addition of this server."""

    inputs: TextsOrIds
    prompt_name: str | None = Field(None, description=PROMPT_NAME)


SPARSE_EXAMPLES: dict[str, Any] = {
    "texts": {"summary": "Two texts", "value": {"inputs": ["Munich is in Germany.", "The sky is blue."]}},
    "truncate": {
        "summary": "Truncate a text that is too long at its end",
        "value": {"inputs": "Munich is in Germany.", "truncate": True, "truncation_direction": "Right"},
    },
}


class SparseEntry(BaseModel):
    """A non-zero value."""

    index: int = Field(description="Index in the vocabulary.")
    value: float = Field(description="Weight.")


# For each input its entries, the indices ascending.
SparseResponse = list[list[SparseEntry]]


async def embed_sparse(body: SparseRequest, call: Call) -> Response:
    """Embed texts as sparse vectors.

    Returns the non-zero entries of each vector, equal to `SparseEncoder.encode`.
    """
    watch = Stopwatch()
    engine, input_type = call.resolve(body, "embed_sparse", body.inputs)
    options = EmbedOptions(
        prompt_name=body.prompt_name,
        input_type=input_type,
        truncation=read_truncation(body),
        outputs=("sparse",),
        token_ids=TokenIdPolicy.model,
    )
    result = await watch.time(engine.embedder.encode(body.inputs, options))
    response = sparse_response(result.get("sparse"))
    return watch.stamp(response, engine, body.inputs, num_tokens=result.num_tokens)


ENDPOINTS = [
    Endpoint(
        "/embed_sparse", [Form(embed_sparse, SparseRequest, SparseResponse, SPARSE_EXAMPLES, errors=ERRORS)]
    )
]
