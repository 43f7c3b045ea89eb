"""Refuse requests to a model whose queue is full before anything but their body is looked at.

A server that is asked for several times as much as it can compute sends mostly refusals, and the CPU time
that they take is missing for computing. So a small body that has arrived is parsed, and its refusal is sent
without the steps that every other request takes. A request that may be accepted, or is unusual, takes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import orjson
from starlette.requests import Request
from starlette.types import Message, Scope, Send

from infinity_emb.errors import Overloaded
from infinity_emb.server.error_format import ErrorContext, Failure, set_error_context
from infinity_emb.server.requests.call import check_room
from infinity_emb.server.requests.context import PRIORITY_HEADER
from infinity_emb.server.requests.headers import read_content_length
from infinity_emb.server.responses.errors import OVERLOADED, failure_response, find_error_kind
from infinity_emb.server.routing import Form, select_form
from infinity_emb.server.schemas.common import TaskRequest
from infinity_emb.server.served_models import ServedModels

# Larger bodies arrive in several pieces, and take milliseconds to parse.
MAX_BODY_BYTES = 2**16
_UNUSUAL_HEADERS = frozenset({b"content-encoding", b"prefer", PRIORITY_HEADER})


class Refusal(NamedTuple):
    """A response that is ready to be sent."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    async def send(self, send: Send) -> None:
        """Send the response."""
        # A new list each time, as middleware adds to it.
        await send({"type": "http.response.start", "status": self.status, "headers": list(self.headers)})
        await send({"type": "http.response.body", "body": self.body})


class EarlyRefusals:
    """The refusals of one endpoint."""

    def __init__(self, forms: Sequence[Form], models: ServedModels) -> None:
        self._forms = forms
        self._models = models
        self._can_refuse = any(map(_find_task, forms))

    @property
    def are_likely(self) -> bool:
        """True if some model has refused a request and not been seen to have room since."""
        return self._can_refuse and self._models.has_refused

    def find(self, scope: Scope, message: Message) -> Refusal | None:
        """Return the refusal of a request, or None if it is to take the usual steps.

        message: the first one of its body.
        """
        body: bytes = message.get("body", b"")
        is_whole = not message.get("more_body") or len(body) == read_content_length(scope)
        if not is_whole or len(body) > MAX_BODY_BYTES or not _is_plain(scope):
            return None
        try:
            fields = orjson.loads(body)
        except orjson.JSONDecodeError:
            return None
        return self._check_room(scope, fields) if isinstance(fields, dict) else None

    def _check_room(self, scope: Scope, fields: dict[str, object]) -> Refusal | None:
        form = self._forms[0] if len(self._forms) == 1 else select_form(self._forms, fields, Request(scope))
        schema = _find_task(form)
        if schema is None:
            return None
        try:
            check_room(scope, self._models, schema, fields)
        except Overloaded as exc:
            scope["state"]["error_kind"] = OVERLOADED
            return _format_refusal(form.error_context, exc.reason, exc.retry_after_s)
        return None


def _find_task(form: Form) -> type[TaskRequest] | None:
    """Return the schema of requests that are refused when the queue is full."""
    schema = form.schema
    if schema is None or not issubclass(schema, TaskRequest):
        return None
    return schema if schema.needs_capacity else None


def _is_plain(scope: Scope) -> bool:
    """Return false if headers say that the body is not plain JSON, or change what the response has."""
    for name, value in scope["headers"]:
        if name in _UNUSUAL_HEADERS or (name == b"content-type" and value != b"application/json"):
            return False
    return True


@lru_cache(maxsize=256)
def _format_refusal(context: ErrorContext, reason: str, retry_after_s: int) -> Refusal:
    """Format a refusal in the dialect of its request; those of one second differ little."""
    error = Overloaded(reason, retry_after_s=retry_after_s)
    scope: Scope = {"headers": []}
    set_error_context(scope, context)
    response = failure_response(scope, Failure(find_error_kind(Overloaded).status, str(error), error))
    return Refusal(response.status_code, tuple(response.raw_headers), bytes(response.body))
