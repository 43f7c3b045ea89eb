"""Who sends a request and how much it hurries, from its members, its headers and its connection.

Knows nothing of queues; `caller.py` says what becomes of it.
"""

from __future__ import annotations

import math

from pydantic_core import PydanticCustomError
from starlette.requests import Request

from infinity_emb.caller import Caller
from infinity_emb.primitives import Lane
from infinity_emb.server.schemas.task import TaskRequest, parse_priority
from infinity_emb.server.validation import header_error

PRIORITY_HEADER = "x-priority"
TIMEOUT_HEADER = "x-request-timeout"


def caller_of(request: Request, body: TaskRequest) -> Caller:
    """A member counts before the header of the same meaning. Raises RequestValidationError."""
    return Caller(
        request_id=request.state.request_id,
        client=client_of(request),
        lane=_lane_in(request) if body.priority is None else body.priority,
        timeout_s=_timeout_in(request) if body.timeout is None else body.timeout,
    )


def client_of(request: Request) -> str:
    """Who is to have a share: the API key that was asked for, else the address."""
    client: str | None = getattr(request.state, "client", None)
    return client or (request.client.host if request.client else "")


def _lane_in(request: Request) -> Lane | None:
    given = request.headers.get(PRIORITY_HEADER)
    if given is None:
        return None
    try:
        return parse_priority(int(given) if given.lstrip("-").isdecimal() else given)
    except PydanticCustomError as exc:
        raise header_error(PRIORITY_HEADER, str(exc), given) from None


def _timeout_in(request: Request) -> float | None:
    given = request.headers.get(TIMEOUT_HEADER)
    if given is None:
        return None
    try:
        timeout_s = float(given)
    except ValueError:
        timeout_s = math.nan
    if not 0 < timeout_s < math.inf:
        raise header_error(TIMEOUT_HEADER, "must be a number of seconds above 0", given)
    return timeout_s
