"""Read client, priority and timeout of a request from its fields, its headers and its connection."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from pydantic_core import PydanticCustomError
from starlette.types import Scope

from infinity_emb.scheduling.fair_queue import Flow
from infinity_emb.scheduling.request_context import RequestContext
from infinity_emb.scheduling.stages import RequestStages
from infinity_emb.server.request_errors import header_error
from infinity_emb.server.requests.headers import find_header
from infinity_emb.server.schemas.common import TaskRequest, parse_priority
from infinity_emb.types import Lane

PRIORITY_HEADER = b"x-priority"
TIMEOUT_HEADER = b"x-request-timeout"
# Python's own parsers accept more than numbers, and refuse those of thousands of digits.
_INTEGER = re.compile(r"-?[0-9]{1,18}")
_NUMBER = re.compile(r"[0-9.eE+-]{1,32}")


def open_context(scope: Scope, stages: RequestStages | None) -> RequestContext:
    """Return the context of a request whose body has not been read."""
    return RequestContext(
        request_id=scope["state"].get("request_id", ""), client=read_client(scope), stages=stages
    )


def complete_context(context: RequestContext, scope: Scope, body: TaskRequest) -> RequestContext:
    """Add lane and time limit; a field takes precedence over its header. Raises RequestValidationError."""
    lane = _read_lane(scope) if body.priority is None else body.priority
    timeout_s = _read_timeout(scope) if body.timeout is None else body.timeout
    if lane is None and timeout_s is None:
        return context
    return context._replace(lane=lane, timeout_s=timeout_s)


def guess_flow(scope: Scope, schema: type[TaskRequest], fields: Mapping[str, object]) -> Flow:
    """Return the flow of a request that is not validated yet: interactive unless it is certainly bulk."""
    inputs = fields.get(schema.input_field)
    names_lane = "priority" in fields or find_header(scope, PRIORITY_HEADER) is not None
    num_inputs = len(inputs) if isinstance(inputs, list) and not names_lane else 1
    return RequestContext(client=read_client(scope)).flow(num_inputs)


def read_client(scope: Scope) -> str:
    """Return the client whose fair share the request uses: its API key, or its address."""
    key: str | None = scope.get("state", {}).get("client")
    if key:
        return key
    return scope["client"][0] if scope.get("client") else ""


def _read_lane(scope: Scope) -> Lane | None:
    given = find_header(scope, PRIORITY_HEADER)
    if given is None:
        return None
    try:
        return parse_priority(int(given) if _INTEGER.fullmatch(given) else given)
    except PydanticCustomError as exc:
        raise header_error(PRIORITY_HEADER, str(exc), given) from None


def _read_timeout(scope: Scope) -> float | None:
    given = find_header(scope, TIMEOUT_HEADER)
    if given is None:
        return None
    try:
        timeout_s = float(given) if _NUMBER.fullmatch(given) else math.nan
    except ValueError:
        timeout_s = math.nan
    if not 0 < timeout_s < math.inf:
        raise header_error(TIMEOUT_HEADER, "must be a number of seconds above 0", given)
    return timeout_s
