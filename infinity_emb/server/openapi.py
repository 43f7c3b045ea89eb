"""Build the OpenAPI document of an app with FastAPI's functions."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from functools import reduce
from inspect import Parameter, Signature
from operator import or_
from typing import Annotated, Any

from fastapi import Body, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.responses import Response

from infinity_emb.server.responses.error_docs import UNAUTHORIZED, Documented
from infinity_emb.server.router import EndpointRoute
from infinity_emb.server.routing import Endpoint

SECURITY_SCHEME = "HTTPBearer"
# Attributes of an app that `get_openapi` takes under the same names.
DESCRIBED_BY = (
    *("title", "version", "openapi_version", "summary", "description", "terms_of_service", "contact"),
    *("license_info", "servers", "separate_input_output_schemas"),
)


def build_document(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document; it describes the API key if any operation needs one."""
    routes = [
        _document_route(route) if isinstance(route, EndpointRoute) and route.is_documented else route
        for route in app.routes
    ]
    document = get_openapi(
        **{name: getattr(app, name) for name in DESCRIBED_BY},
        routes=routes,
        webhooks=app.webhooks.routes,
        tags=app.openapi_tags,
        external_docs=app.openapi_external_docs,
    )
    _drop_unused_schemas(document)
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    if any("security" in operation for operation in operations):
        schemes = document["components"].setdefault("securitySchemes", {})
        schemes[SECURITY_SCHEME] = {"type": "http", "scheme": "bearer"}
    return document


def _document_route(route: EndpointRoute) -> APIRoute:
    """Make the route that FastAPI documents, with the signature of a function that is never called."""
    endpoint = route.served
    return APIRoute(
        route.path,
        _make_documented_function(endpoint),
        methods=[endpoint.method],
        tags=[endpoint.tag],
        summary=endpoint.summary,
        description=endpoint.description,
        operation_id=endpoint.name,
        response_model=reduce(or_, (form.response for form in endpoint.forms)),
        responses=_document_responses(endpoint, needs_key=route.needs_key),
        response_class=endpoint.response_class,
        deprecated=endpoint.is_deprecated or None,
        openapi_extra={"security": [{SECURITY_SCHEME: []}]} if route.needs_key else None,
    )


def _make_documented_function(endpoint: Endpoint) -> Callable[..., Awaitable[Response]]:
    """Make a function with the signature from which FastAPI documents the endpoint."""

    async def operation() -> Response:
        raise NotImplementedError

    operation.__name__ = endpoint.name
    operation.__signature__ = Signature([*_document_body(endpoint), *endpoint.parameters])  # type: ignore[attr-defined]
    return operation


def _document_body(endpoint: Endpoint) -> list[Parameter]:
    schemas = [form.schema for form in endpoint.forms if form.schema is not None]
    if not schemas:
        return []
    examples = {name: example for form in endpoint.forms for name, example in form.examples.items()}
    schema: Any = reduce(or_, schemas)
    annotation = Annotated[schema, Body(openapi_examples=examples)]
    return [Parameter("body", Parameter.KEYWORD_ONLY, annotation=annotation)]


def _document_responses(endpoint: Endpoint, *, needs_key: bool) -> dict[int | str, Documented]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    success: Documented = {"content": dict.fromkeys(endpoint.binary_types, binary)}
    unauthorized: dict[int | str, Documented] = {401: _document_unauthorized(endpoint)} if needs_key else {}
    return {200: success, **unauthorized, **endpoint.error_docs}


def _document_unauthorized(endpoint: Endpoint) -> Documented:
    form = endpoint.forms[0]
    return {**UNAUTHORIZED, "model": form.errors.docs[503]["model"]} if form.errors.format else UNAUTHORIZED


def _drop_unused_schemas(document: dict[str, Any]) -> None:
    """Drop schemas that nothing refers to."""
    used = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    schemas = document["components"]["schemas"]
    document["components"]["schemas"] = {name: schemas[name] for name in schemas if name in used}
