"""The routes of the API: at `{prefix}/...`, most at `{prefix}/v1/...` too, and documented once.

Knows nothing of what a route does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import APIRouter
from fastapi.params import Depends
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.responses import Response

from infinity_emb.server.direct_routes import DirectRoute
from infinity_emb.server.error_docs import TASK_ERRORS, UNAUTHORIZED, Documented
from infinity_emb.server.error_shape import ErrorShape
from infinity_emb.server.json_route import JsonRoute, answer_of, body_schemas
from infinity_emb.server.members import check_num_members
from infinity_emb.server.served_engines import ServedEngines

# Takes `body` and `request`, or what stands in the path; FastAPI reads its annotations.
Handler = Callable[..., Coroutine[Any, Any, Response]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiRoute:
    """A handler, where it is reached, and how it is documented; its name is the operation's id.

    response_model: what FastAPI documents; handlers answer with bytes of their own making.
    errors: status → its documentation, for all statuses but 401.
    is_at_v1: whether `{prefix}/v1/...` reaches it too; a dialect's clients know one path alone.
    error_shape: of errors before a body is read; where there is a body, its first schema says it.
    media_types: of answers that are no JSON.
    """

    path: str
    method: Literal["GET", "POST", "DELETE"]
    answer: Handler
    response_model: object
    errors: Mapping[int | str, Documented]
    is_deprecated: bool = False
    is_at_v1: bool = True
    error_shape: ErrorShape | None = None
    media_types: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.takes_json:
            object.__setattr__(self, "error_shape", body_schemas(self.answer)[0].error_shape)

    @property
    def takes_json(self) -> bool:
        """Whether there is a body to be read."""
        return "body" in inspect.signature(self.answer).parameters

    def paths(self, prefix: str) -> list[str]:
        """Where it is reached; the first is documented."""
        bases = api_prefixes(prefix) if self.is_at_v1 else [prefix]
        return [(base + self.path).rstrip("/") or "/" for base in bases]

    @classmethod
    def of_task(
        cls,
        path: str,
        answer: Handler,
        response_model: object,
        *,
        errors: Mapping[int | str, Documented] = TASK_ERRORS,
        is_deprecated: bool = False,
        media_types: Sequence[str] = (),
    ) -> ApiRoute:
        """A route that takes JSON to a model."""
        return cls(
            path=path,
            method="POST",
            answer=answer,
            response_model=response_model,
            errors=errors,
            is_deprecated=is_deprecated,
            media_types=media_types,
        )

    @classmethod
    def of_dialect(
        cls,
        path: str,
        answer: Handler,
        response_model: object,
        error_model: type[BaseModel],
        *,
        errors: Mapping[int | str, Documented] = TASK_ERRORS,
    ) -> ApiRoute:
        """A route that takes JSON to a model and answers, errors too, as another vendor's server does."""
        return cls(
            path=path,
            method="POST",
            answer=answer,
            response_model=response_model,
            errors={status: {**each, "model": error_model} for status, each in errors.items()},
            is_at_v1=False,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """The handlers of one task, over one app's engines."""

    served: ServedEngines
    max_client_batch_size: int

    def routes(self) -> list[ApiRoute]:
        """Where the handlers are reached."""
        raise NotImplementedError

    def check_num_inputs(self, inputs: Sequence[object], name: str) -> None:
        """Raises a 422 for more inputs than one request may have. name: of the member that holds them."""
        way_out = ", or start the server with a larger --max-client-batch-size"
        check_num_members(inputs, limit=self.max_client_batch_size, name=name, way_out=way_out)


def add_api_routes(
    router: APIRouter, routes: Iterable[ApiRoute], *, prefix: str, dependencies: Sequence[Depends]
) -> None:
    """Register the routes under their prefixes; the OpenAPI document shows `{prefix}/...` alone.

    dependencies: declared, so that the document shows how to authorize.
    """
    for route in routes:
        unauthorized: dict[int | str, Documented] = {401: _unauthorized(route)} if dependencies else {}
        for number, path in enumerate(route.paths(prefix)):
            router.add_api_route(
                path,
                route.answer,
                methods=[route.method],
                operation_id=route.answer.__name__,
                response_model=route.response_model,
                responses={200: _binary(route.media_types), **unauthorized, **route.errors},
                dependencies=dependencies,
                deprecated=route.is_deprecated or None,
                include_in_schema=number == 0,
                route_class_override=JsonRoute if route.takes_json else APIRoute,
            )


def direct_routes(routes: Iterable[ApiRoute], *, prefix: str) -> list[DirectRoute]:
    """Those that take JSON, at all their paths."""
    return [
        DirectRoute(path, answer_of(route.answer))
        for route in routes
        if route.takes_json
        for path in route.paths(prefix)
    ]


def error_shapes(routes: Iterable[ApiRoute], *, prefix: str) -> dict[str, ErrorShape]:
    """Path → shape of the dialect that it is of; the server's own paths are left out."""
    return {path: route.error_shape for route in routes if route.error_shape for path in route.paths(prefix)}


def _binary(media_types: Sequence[str]) -> Documented:
    """Added to the JSON of the response model."""
    bytes_schema = {"schema": {"type": "string", "format": "binary"}}
    return {"content": dict.fromkeys(media_types, bytes_schema)}


def _unauthorized(route: ApiRoute) -> Documented:
    """As a dialect documents its other errors."""
    return {**UNAUTHORIZED, "model": route.errors[503]["model"]} if route.error_shape else UNAUTHORIZED


def api_prefixes(prefix: str) -> list[str]:
    """`{prefix}` and `{prefix}/v1`; the former alone where it ends in /v1 itself."""
    return [prefix] if prefix.endswith("/v1") else [prefix, f"{prefix}/v1"]
