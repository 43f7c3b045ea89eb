"""Route requests to endpoints: by a dictionary of exact paths, then by FastAPI's patterns.

FastAPI's own way to a handler (a list of patterns, exit stacks, two layers that catch exceptions) costs a
third of what the server spends on a small request, so only its document and its patterns are used.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from starlette.requests import Request
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infinity_emb.scheduling.fair_threads import FairThreads
from infinity_emb.scheduling.request_context import RequestContext, set_memory, set_request
from infinity_emb.server.early_refusals import EarlyRefusals
from infinity_emb.server.error_format import set_error_context
from infinity_emb.server.requests.body import repeat_messages
from infinity_emb.server.requests.call import Call, check_room
from infinity_emb.server.requests.context import complete_context, open_context
from infinity_emb.server.requests.disconnect import DisconnectWatch
from infinity_emb.server.requests.json_body import JsonReader
from infinity_emb.server.requests.memory import HeldMemory, MemoryBudget
from infinity_emb.server.requests.paths import remove_slashes, strip_root_path
from infinity_emb.server.responses.sending import count_body_bytes, send_response
from infinity_emb.server.responses.server_timing import open_stages, timing_headers
from infinity_emb.server.responses.sliced import SlicedResponse
from infinity_emb.server.routing import Endpoint, Form, select_form
from infinity_emb.server.schemas.common import JsonBody, TaskRequest
from infinity_emb.server.served_models import ServedModels


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerContext:
    """The state that all endpoints of one app share.

    threads: where large bodies and responses are decoded and encoded.
    """

    models: ServedModels
    bodies: JsonReader
    threads: FairThreads
    memory: MemoryBudget
    max_client_batch_size: int


class EndpointApp:
    """The ASGI app of an endpoint."""

    def __init__(self, endpoint: Endpoint, context: ServerContext) -> None:
        self._forms = endpoint.forms
        self._context = context
        self._refusals = EarlyRefusals(endpoint.forms, context.models)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body, call the handler of its form, and send the response; count the memory they take."""
        if self._refusals.are_likely:
            message = await receive()
            refusal = self._refusals.find(scope, message)
            if refusal is not None:
                await refusal.send(send)
                return
            receive = repeat_messages([message], receive)
        request = Request(scope, receive)
        stages = open_stages(scope)
        shared, context = self._context, open_context(scope, stages)
        with shared.memory.open(context.client) as held:
            call = Call(request, shared.models, shared.max_client_batch_size, shared.bodies, held)
            set_memory(held)
            set_request(context)
            form, body = await self._read(request, context, held)
            if stages is not None:
                stages.add("parse", stages.started_s)
            # Admin requests go on without their client: loading takes minutes.
            with DisconnectWatch(request) if isinstance(body, TaskRequest) else nullcontext():
                response = await (form.handler(call) if body is None else form.handler(body, call))
                if isinstance(response, SlicedResponse):
                    await response.encode(self._context.threads, held)
            del body  # sending may take as long as the client likes
            if stages is not None:
                stages.add("encode", stages.reached_s)
                response.headers.update(timing_headers(scope))
            held.hold(count_body_bytes(response))
            await send_response(response, scope, receive, send)

    async def _read(
        self, request: Request, context: RequestContext, held: HeldMemory
    ) -> tuple[Form, JsonBody | None]:
        """Read the body and select its form."""
        form = self._forms[0]
        set_error_context(request.scope, form.error_context)
        if form.schema is None:
            return form, None
        fields = await self._context.bodies.read(request, held, needs_content_type=form.needs_content_type)
        form = select_form(self._forms, fields, request)
        if form is not self._forms[0]:
            set_error_context(request.scope, form.error_context)
        schema = form.schema or JsonBody
        if issubclass(schema, TaskRequest) and schema.needs_capacity:
            check_room(request.scope, self._context.models, schema, fields)
        body = await self._context.bodies.validate(schema, fields, held)
        if isinstance(body, TaskRequest):
            set_request(complete_context(context, request.scope, body))
        return form, body


class EndpointRoute(Route):
    """A path of an endpoint. An `APIRoute`, with its documentation, takes ten times as long to make."""

    def __init__(
        self, path: str, served: Endpoint, app: ASGIApp, *, needs_key: bool, is_documented: bool = False
    ) -> None:
        super().__init__(path, app, methods=[served.method], name=served.name)
        self.methods = {served.method}  # without HEAD, like FastAPI's routes
        self.served, self.needs_key, self.is_documented = served, needs_key, is_documented

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match like FastAPI's routes, which put themselves in the scope, where metrics find them."""
        match, child_scope = super().matches(scope)
        return match, {**child_scope, "route": self}


class ExactPathRouter(APIRouter):
    """Look a request up by method and path before matching patterns; serve HEAD like GET."""

    def __init__(self, **options: Any) -> None:
        super().__init__(redirect_slashes=False, **options)
        # For routes that users of `create_server` add: FastAPI closes their files and dependencies in it.
        self._patterns = AsyncExitStackMiddleware(super().app)
        self._exact = {
            (method, route.path): route
            for route in self.routes
            if isinstance(route, EndpointRoute) and not route.param_convertors
            for method in route.methods or ()
        }

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._patterns(scope, receive, send)
            return
        method: str = scope["method"]
        if method == "HEAD":
            method, send = "GET", _drop_bodies(send)
        route = self._exact.get((method, strip_root_path(scope)))
        if route is None:
            await self._match_patterns(method, scope, receive, send)
        else:
            scope["route"] = route
            await route.app(scope, receive, send)

    async def _match_patterns(self, method: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request to a path with parameters, or to an unknown path."""
        child_scope = {**scope, "method": method, "path": remove_slashes(scope["path"])}
        try:
            await self._patterns(child_scope, receive, send)
        finally:
            scope["route"] = child_scope.get("route")  # for the metrics


def _drop_bodies(send: Send) -> Send:
    """Send headers only, as not all servers drop the bodies of responses to HEAD."""

    async def send_without_body(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    return send_without_body


def make_routes(
    endpoints: Iterable[Endpoint], context: ServerContext, *, prefix: str, needs_key: bool
) -> list[BaseRoute]:
    """Make the routes of all paths; OpenAPI documents the first path of each endpoint.

    needs_key: document that they require an API key; `ApiKeyMiddleware` checks it.
    """
    routes: list[BaseRoute] = []
    for endpoint in endpoints:
        app = EndpointApp(endpoint, context)
        path, *aliases = endpoint.list_paths(prefix)
        routes.append(
            EndpointRoute(path, endpoint, app, needs_key=needs_key, is_documented=endpoint.is_documented)
        )
        routes.extend(EndpointRoute(alias, endpoint, app, needs_key=needs_key) for alias in aliases)
    return routes
