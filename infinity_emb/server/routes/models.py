"""`/models`: list the served models."""

from __future__ import annotations

from starlette.responses import Response

from infinity_emb.server.requests.call import Call
from infinity_emb.server.responses.error_docs import INVALID, NOT_FOUND, NOT_READY, Errors
from infinity_emb.server.responses.json_vectors import json_response
from infinity_emb.server.responses.model_entry import describe_model
from infinity_emb.server.routing import Endpoint, Form, path_parameter
from infinity_emb.server.schemas.models import ModelEntry, ModelList


async def models(call: Call) -> Response:
    """List the served models.

    Returns the detected properties of each model and the state of its queue.
    """
    entries = [describe_model(engine, call.models.started_at) for engine in call.models.array]
    return json_response({"data": entries, "object": "list"})


async def model(call: Call) -> Response:
    """Describe a served model.

    Takes its name or an alias; names may contain slashes.
    """
    name: str = call.request.path_params["model_id"]
    if not name:  # GET /models/ with a trailing slash
        return await models(call)
    return json_response(describe_model(call.models.find(name), call.models.started_at))


ENDPOINTS = [
    Endpoint("/models", [Form(models, None, ModelList, errors=Errors({503: NOT_READY}))], method="GET"),
    Endpoint(
        "/models/{model_id:path}",
        [Form(model, None, ModelEntry, errors=Errors({404: NOT_FOUND, 422: INVALID, 503: NOT_READY}))],
        method="GET",
        parameters=[path_parameter("model_id", "Served name or alias.")],
    ),
]
