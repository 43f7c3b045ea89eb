"""Context of a request: its client, lane, time limit, record of stages, token budget and memory.

They are context variables, so that methods need not pass them on. The tasks that a request starts inherit
them; other requests do not see them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from infinity_emb.errors import BadInput
from infinity_emb.scheduling.fair_queue import Flow
from infinity_emb.scheduling.stages import RequestStages
from infinity_emb.types import Lane

# A request that names no lane is bulk work if it has more inputs than this.
MAX_INTERACTIVE_INPUTS = 64


class RequestContext(NamedTuple):
    """Properties of a request that the client sets, and the record of its stages.

    request_id: for the log.
    client: whose share of the device it uses; requests that name none share one.
    lane: None to decide by the number of inputs.
    timeout_s: time limit of the request; None for the limit of the model.
    stages: records when each stage of the request ended; None if no record is wanted.
    """

    request_id: str = ""
    client: str = ""
    lane: Lane | None = None
    timeout_s: float | None = None
    stages: RequestStages | None = None

    def flow(self, num_inputs: int) -> Flow:
        """Return the flow in which a request with this many inputs is queued."""
        default: Lane = "interactive" if num_inputs <= MAX_INTERACTIVE_INPUTS else "bulk"
        return Flow(self.client, self.lane or default)


DEFAULT_REQUEST = RequestContext()
_request: ContextVar[RequestContext] = ContextVar("infinity_request", default=DEFAULT_REQUEST)


def current_request() -> RequestContext:
    """Return the context of the request that the calling task belongs to."""
    return _request.get()


def set_request(request: RequestContext) -> None:
    """Set the context for the rest of this task and for the tasks that it starts."""
    _request.set(request)


@contextmanager
def request_options(
    *, client: str = "", lane: Lane | None = None, timeout_s: float | None = None
) -> Iterator[None]:
    """Apply options to the requests made inside the block.

    with request_options(lane="bulk"):
        await engine.embed(texts)
    """
    token = _request.set(RequestContext(client=client, lane=lane, timeout_s=timeout_s))
    try:
        yield
    finally:
        _request.reset(token)


@dataclass(slots=True)
class _TokenBudget:
    limit: int
    num_tokens: int = 0


_budget: ContextVar[_TokenBudget | None] = ContextVar("infinity_token_budget", default=None)


_NO_BUDGET = nullcontext()


def token_budget(limit: int) -> AbstractContextManager[None]:
    """Return a context that limits the tokens of one request, however many parts it is tokenized in.

    limit: 0 means none, even inside another budget.
    """
    if not limit and _budget.get() is None:
        return _NO_BUDGET
    return _set_budget(_TokenBudget(limit) if limit else None)


@contextmanager
def _set_budget(budget: _TokenBudget | None) -> Iterator[None]:
    token = _budget.set(budget)
    try:
        yield
    finally:
        # If the event loop is closed during a request, this runs in another context, where nothing was set.
        with suppress(ValueError):
            _budget.reset(token)


def count_tokens(num_tokens: int) -> None:
    """Take tokens from the budget, if there is one. Raises BadInput when it is exceeded."""
    budget = _budget.get()
    if budget is None:
        return
    budget.num_tokens += num_tokens
    if budget.num_tokens > budget.limit:
        raise BadInput(
            f"the request has {budget.num_tokens} tokens or more, the limit is {budget.limit}; send fewer or"
            " shorter inputs, or start the server with a larger --max-request-tokens"
        )


class Memory(Protocol):
    """The memory that one request may take; `num_bytes` of it are taken."""

    num_bytes: int

    def take(self, num_bytes: int) -> bool:
        """Reserve bytes until the response is sent; return false if there is no room for them."""

    def make_error(self) -> Exception:
        """Return the error for a request that does not fit."""


class _UnlimitedMemory:
    """The memory of calls through the Python API."""

    num_bytes = 0

    def take(self, num_bytes: int) -> bool:
        return True

    def make_error(self) -> Exception:
        raise NotImplementedError


_UNLIMITED = _UnlimitedMemory()
_memory: ContextVar[Memory] = ContextVar("infinity_memory", default=_UNLIMITED)


def current_memory() -> Memory:
    """Return the memory from which the calling task takes bytes."""
    return _memory.get()


def set_memory(memory: Memory) -> None:
    """Set the memory for the rest of this task and for the tasks that it starts."""
    _memory.set(memory)


def take_memory(num_bytes: int) -> None:
    """Take bytes from the memory of the calling request. Raises its error if there is no room for them."""
    memory = _memory.get()
    if not memory.take(num_bytes):
        raise memory.make_error()
