"""Who asks, and how much it hurries: what is true of a request whatever its task is.

A context variable, so that it need not be handed through every method of every task; the server sets it once
per request, users of the Python API with `calling`. Knows nothing of HTTP.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from infinity_emb.fairness import Flow
from infinity_emb.primitives import Lane

# A request of more inputs is taken for bulk work where it does not say what it is.
MAX_INTERACTIVE_INPUTS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """What a request says of itself.

    request_id: for the log.
    client: whose fair share of the device it takes; all that name none are one client.
    lane: None leaves it to the number of inputs.
    timeout_s: after which nobody waits for the answer any more; None for the model's own limit.
    """

    request_id: str = ""
    client: str = ""
    lane: Lane | None = None
    timeout_s: float | None = None

    def flow(self, num_inputs: int) -> Flow:
        """Where a request of so many inputs stands in the queue."""
        return Flow(
            self.client,
            self.lane or ("interactive" if num_inputs <= MAX_INTERACTIVE_INPUTS else "bulk"),
        )


NOBODY = Caller()
_CALLER: ContextVar[Caller] = ContextVar("infinity_caller", default=NOBODY)


def present_caller() -> Caller:
    """Whose request this is."""
    return _CALLER.get()


def set_caller(caller: Caller) -> None:
    """For the rest of this task, and for those that it starts."""
    _CALLER.set(caller)


@contextmanager
def calling(*, client: str = "", lane: Lane | None = None, timeout_s: float | None = None) -> Iterator[None]:
    """What is asked inside is asked so: `with calling(lane="bulk"): await engine.embed(texts)`."""
    token = _CALLER.set(Caller(client=client, lane=lane, timeout_s=timeout_s))
    try:
        yield
    finally:
        _CALLER.reset(token)
