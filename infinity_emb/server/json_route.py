"""A FastAPI route whose body is JSON: FastAPI documents it, orjson and pydantic read it.

The way in is content type → size → JSON → schema → handler. FastAPI's own way costs twice the time and
answers what clients send by mistake with less help; nothing of it but the documentation is used, so that
dependencies declared on such a route are not run.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar, get_args, get_type_hints

import orjson
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from infinity_emb.caller import set_caller
from infinity_emb.server.body_limit import BodyReader
from infinity_emb.server.callers import caller_of
from infinity_emb.server.error_shape import note_shape
from infinity_emb.server.schemas.task import JsonBody, TaskRequest
from infinity_emb.server.served_engines import ServedEngines
from infinity_emb.server.validation import body_error

Schema = TypeVar("Schema", bound=JsonBody)

Answer = Callable[[Request], Coroutine[Any, Any, Response]]

MAX_CONTAINERS = 2**17
MAX_VALUES = 2**21


class JsonRoute(APIRoute):
    """Calls `endpoint(body=<schema>, request=<request>)`; the schema is the annotation of `body`.

    Where that is a union, a body is of the first schema that has one of its `told_by` members, null or not,
    else of the first.
    """

    def get_route_handler(self) -> Answer:
        return answer_of(self.endpoint)


def answer_of(endpoint: Callable[..., Any]) -> Answer:
    """What reads a body and calls the endpoint with it."""
    schemas = body_schemas(endpoint)

    async def answer(request: Request) -> Response:
        _note_schema(request, schemas[0])
        check_content_type(request.headers.get("content-type"))
        bodies: BodyReader = request.app.state.bodies
        members = parse_body(await bodies.read(request))
        schema = next((each for each in schemas if not each.told_by.isdisjoint(members)), schemas[0])
        _note_schema(request, schema)
        if issubclass(schema, TaskRequest) and schema.needs_room:
            served: ServedEngines = request.app.state.served
            served.check_room(members.get("model"))  # a refusal must cost less than what it is refused for
        body = fit_schema(schema, members)
        if isinstance(body, TaskRequest):
            set_caller(caller_of(request, body))
        response: Response = await endpoint(body=body, request=request)
        return response

    return answer


def body_schemas(endpoint: Callable[..., object]) -> Sequence[type[JsonBody]]:
    """What the body of a handler may be."""
    annotation = get_type_hints(endpoint)["body"]
    return get_args(annotation) or [annotation]


def _note_schema(request: Request, schema: type[JsonBody]) -> None:
    """For the answer to an error."""
    request.state.input_member = schema.input_member
    note_shape(request, schema.error_shape)


def check_content_type(content_type: str | None) -> None:
    """Raises HTTPException 415 unless the header says JSON."""
    media_type = (content_type or "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        given = f"the content type {content_type!r}" if content_type else "a body without a content type"
        raise HTTPException(415, f"{given} is not JSON; set the header 'Content-Type: application/json'")


def check_size(raw: bytes) -> None:
    """Raises RequestValidationError for JSON of more values than a request has a use for.

    Megabytes of `[],[],` or `1,1,` would hold the event loop for seconds: each value is an object of
    Python's, and each is looked at.
    """
    if _is_small(raw):
        return
    without_escapes = raw.replace(rb"\\", b"").replace(rb"\"", b"")
    outside_of_texts = b"".join(without_escapes.split(b'"')[::2])
    if not _is_small(outside_of_texts):
        message = (
            f"the body has {_num_containers(outside_of_texts)} lists and objects, and about"
            f" {outside_of_texts.count(b',')} values; the limits are {MAX_CONTAINERS} and {MAX_VALUES}"
        )
        raise body_error("json_invalid", f"{message}; send fewer inputs in one request")


def _is_small(raw: bytes) -> bool:
    return _num_containers(raw) <= MAX_CONTAINERS and raw.count(b",") <= MAX_VALUES


def _num_containers(raw: bytes) -> int:
    return raw.count(b"[") + raw.count(b"{")


def parse_body(raw: bytes) -> dict[str, Any]:
    """A JSON object. Raises RequestValidationError."""
    check_size(raw)
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as exc:
        raise body_error("json_invalid", f"the body is not valid JSON: {exc}", loc=[exc.pos]) from None
    if not isinstance(body, dict):
        raise body_error("model_attributes_type", "the body must be a JSON object", given=body)
    return body


def fit_schema(schema: type[Schema], members: dict[str, Any]) -> Schema:
    """The members of a body as its schema has them. Raises RequestValidationError."""
    try:
        return schema.model_validate(members)
    except ValidationError as exc:
        errors = exc.errors(include_url=False, include_context=False)
        raise RequestValidationError(
            [{**error, "loc": ("body", *error["loc"])} for error in errors]
        ) from None
