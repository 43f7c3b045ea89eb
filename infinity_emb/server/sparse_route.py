"""`/embed_sparse`: sparse vectors as clients of Text Embeddings Inference read them."""

from __future__ import annotations

from typing import Annotated

from fastapi import Body
from starlette.requests import Request
from starlette.responses import Response

from infinity_emb.embedding import EmbedOptions
from infinity_emb.server.api_route import ApiRoute, Task
from infinity_emb.server.dialects.tei_timing import Stopwatch
from infinity_emb.server.disconnect import cancel_on_disconnect
from infinity_emb.server.encode import sparse_response
from infinity_emb.server.error_docs import TEI_ERRORS
from infinity_emb.server.inputs import check_ids_allowed
from infinity_emb.server.members import choose_truncation
from infinity_emb.server.schemas.sparse import SPARSE_EXAMPLES, SparseRequest, SparseResponse


class SparseRoute(Task):
    """The handler, over one app's engines."""

    def routes(self) -> list[ApiRoute]:
        """Where the handler is reached."""
        return [
            ApiRoute(
                path="/embed_sparse",
                method="POST",
                answer=self.embed_sparse,
                response_model=SparseResponse,
                errors=TEI_ERRORS,
            )
        ]

    async def embed_sparse(
        self, body: Annotated[SparseRequest, Body(openapi_examples=SPARSE_EXAMPLES)], request: Request
    ) -> Response:
        """For each text the entries of its sparse vector that are not 0, equal to `SparseEncoder.encode`."""
        watch = Stopwatch()
        self.check_num_inputs(body.inputs, "inputs")
        engine, input_type = self.served.choose(body.model_name, "embed_sparse")
        check_ids_allowed(body.inputs, engine.engine_args.token_ids, name="inputs")
        truncation = choose_truncation(body.truncate, truncation_direction=body.truncation_direction)
        options = EmbedOptions(
            prompt_name=body.prompt_name, input_type=input_type, truncation=truncation, outputs=("sparse",)
        )
        answer = await watch.time(cancel_on_disconnect(request, engine.encode(body.inputs, options)))
        assert answer.sparse is not None, "an engine answers what it was asked for"
        response = await sparse_response(answer.sparse)
        return watch.stamp(response, engine, body.inputs, num_tokens=answer.num_tokens)
