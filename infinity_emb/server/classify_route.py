"""`/classify`: the labels of texts and of pairs of texts. Knows nothing of how a model scores them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import Body
from starlette.requests import Request
from starlette.responses import Response

from infinity_emb.primitives import ClassifyReturnType
from infinity_emb.server.api_route import ApiRoute, Task
from infinity_emb.server.dialects.vllm import VllmRoutes
from infinity_emb.server.disconnect import cancel_on_disconnect
from infinity_emb.server.encode import task_response
from infinity_emb.server.members import choose_truncation
from infinity_emb.server.schemas.classify import CLASSIFY_EXAMPLES, ClassifyRequest, ClassifyResponse
from infinity_emb.server.schemas.vllm import (
    VLLM_CLASSIFY_EXAMPLES,
    VllmClassifyRequest,
    VllmClassifyResponse,
)

# A member that only vLLM has tells whose client asks.
Form = Annotated[
    ClassifyRequest | VllmClassifyRequest,
    Body(openapi_examples={**CLASSIFY_EXAMPLES, **VLLM_CLASSIFY_EXAMPLES}),
]


class ClassifyRoute(Task):
    """The handler, over one app's engines."""

    def routes(self) -> list[ApiRoute]:
        """Where the handler is reached."""
        return [ApiRoute.of_task("/classify", self.classify, ClassifyResponse | VllmClassifyResponse)]

    async def classify(self, body: Form, request: Request) -> Response:
        """All labels of each text or pair of texts, the most likely first."""
        if isinstance(body, VllmClassifyRequest):
            vllm = VllmRoutes(served=self.served, max_client_batch_size=self.max_client_batch_size)
            return await vllm.vllm_classify(body, request)
        self.check_num_inputs(body.input, "input")
        engine, _ = self.served.choose(body.model_name, "classify")
        labelled, num_tokens = await cancel_on_disconnect(
            request,
            engine.classify(
                sentences=body.input,
                raw_scores=bool(body.raw_scores),
                truncation=choose_truncation(body.truncate, truncation_side=body.truncation_side),
                max_tokens=body.truncate_prompt_tokens,
            ),
        )
        data = [_describe_labels(labels) for labels in labelled]
        name = engine.engine_args.served_model_name
        return task_response("classify", {"data": data}, model=name, num_tokens=num_tokens)


def _describe_labels(labels: Sequence[ClassifyReturnType]) -> list[dict[str, object]]:
    return [{"score": each["score"], "label": each["label"]} for each in labels]
