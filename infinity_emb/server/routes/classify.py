"""`/classify`: classify texts and pairs of texts."""

from __future__ import annotations

from starlette.responses import Response

from infinity_emb.engine.results import ClassifyOptions
from infinity_emb.server.requests.call import Call
from infinity_emb.server.requests.fields import choose_truncation
from infinity_emb.server.responses.json_vectors import task_response
from infinity_emb.server.responses.sliced import JsonList
from infinity_emb.server.routing import Endpoint, Form
from infinity_emb.server.schemas.classify import CLASSIFY_EXAMPLES, ClassifyRequest, ClassifyResponse


async def classify(body: ClassifyRequest, call: Call) -> Response:
    """Classify texts or pairs of texts.

    Returns all labels of each, the most likely first.
    """
    engine, _ = call.resolve(body, "classify", body.input)
    options = ClassifyOptions(
        raw_scores=bool(body.raw_scores),
        truncation=choose_truncation(body.truncate, truncation_side=body.truncation_side),
        max_tokens=body.truncate_prompt_tokens,
    )
    labelled, num_tokens = await engine.scorer.classify(body.input, options)
    name = engine.engine_args.served_model_name
    data = JsonList(labelled.__getitem__, len(labelled), sum(map(len, labelled)))
    return task_response("classify", {"data": data}, model=name, num_tokens=num_tokens)


ENDPOINTS = [Endpoint("/classify", [Form(classify, ClassifyRequest, ClassifyResponse, CLASSIFY_EXAMPLES)])]
