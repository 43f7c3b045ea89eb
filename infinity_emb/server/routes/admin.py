"""`/admin/models`: load and unload models while the server runs. Requires `--admin-key`."""

from __future__ import annotations

from starlette.responses import Response

from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.server.request_errors import body_error
from infinity_emb.server.requests.call import Call
from infinity_emb.server.responses.error_docs import (
    LOAD_ERRORS,
    NAME_IN_USE,
    NOT_FOUND,
    NOT_READY,
    ErrorDocs,
    Errors,
)
from infinity_emb.server.responses.json_vectors import json_response
from infinity_emb.server.responses.model_entry import describe_model
from infinity_emb.server.routing import Endpoint, Form, path_parameter, tag_endpoints
from infinity_emb.server.schemas.admin import LOAD_EXAMPLES, AdminModelList, LoadRequest, UnloadedModel
from infinity_emb.server.schemas.models import ModelEntry

ADMIN_PATH = "/admin"


async def list_models(call: Call) -> Response:
    """List the served models.

    Returns also the names of those being loaded, unloaded or reloaded.
    """
    entries = [describe_model(engine, call.models.started_at) for engine in call.models.array]
    return json_response({"data": entries, "changing": sorted(call.models.changing), "object": "list"})


async def load_model(body: LoadRequest, call: Call) -> Response:
    """Load a model and serve it.

    Takes the options of the command line; none are inherited. Responds when the model is ready, after seconds
    or minutes, without blocking other requests.
    """
    args = body.engine_args()
    if args.trust_remote_code and not call.models.may_run_code:
        message = "is refused: the server itself was started without --trust-remote-code"
        raise body_error("option", message, loc=["trust_remote_code"], given=True)
    engine = await call.models.load(args)
    return json_response(describe_model(engine, call.models.started_at))


async def unload_model(call: Call) -> Response:
    """Unload a model.

    Finishes the requests that it accepted, then frees its memory.
    """
    engine = _find_model(call)
    await call.models.unload(engine)
    name = engine.engine_args.served_model_name
    return json_response({"id": name, "object": "model", "deleted": True})


async def reload_model(call: Call) -> Response:
    """Reload a model.

    Finishes the requests that it accepted; new requests for it wait. If loading fails the model stays
    unloaded, and the next request tries again.
    """
    engine = _find_model(call)
    await call.models.reload(engine)
    return json_response(describe_model(engine, call.models.started_at))


def _find_model(call: Call) -> AsyncEmbeddingEngine:
    return call.models.find(call.request.path_params["model_id"])


_MODELS = f"{ADMIN_PATH}/models"
_MODEL = f"{ADMIN_PATH}/models/{{model_id:path}}"
_MODEL_ID = path_parameter("model_id", "Served name or alias.")
_MODEL_ERRORS: ErrorDocs = {404: NOT_FOUND, 409: NAME_IN_USE, 503: NOT_READY}
_UNLOAD_ERRORS = Errors({**_MODEL_ERRORS, 422: LOAD_ERRORS[422]})
_RELOAD_ERRORS = Errors({**_MODEL_ERRORS, **{status: LOAD_ERRORS[status] for status in (400, 422, 507)}})

ADMIN_ENDPOINTS = tag_endpoints(
    "Administration",
    Endpoint(
        _MODELS,
        [Form(list_models, None, AdminModelList, errors=Errors({503: NOT_READY}))],
        method="GET",
        is_at_v1=False,
    ),
    Endpoint(
        _MODELS,
        [Form(load_model, LoadRequest, ModelEntry, LOAD_EXAMPLES, errors=Errors(LOAD_ERRORS))],
        is_at_v1=False,
    ),
    Endpoint(
        f"{_MODEL}/reload",
        [Form(reload_model, None, ModelEntry, errors=_RELOAD_ERRORS)],
        is_at_v1=False,
        parameters=[_MODEL_ID],
    ),
    Endpoint(
        _MODEL,
        [Form(unload_model, None, UnloadedModel, errors=_UNLOAD_ERRORS)],
        method="DELETE",
        is_at_v1=False,
        parameters=[_MODEL_ID],
    ),
)
