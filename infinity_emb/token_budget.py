"""How many tokens one request may have in all, in however many parts they are counted.

The budget belongs to whatever runs inside the `with`, tasks that are begun there included. Knows nothing of
models or of what a token is. `running_model.py` opens one per request.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass

from infinity_emb.errors import BadInput


@dataclass(slots=True)
class _Budget:
    limit: int
    num_tokens: int = 0


_budget: ContextVar[_Budget | None] = ContextVar("token_budget", default=None)


@contextmanager
def token_budget(limit: int) -> Iterator[None]:
    """Inside, `count_tokens` allows so many tokens; 0 sets no limit, also inside of another budget."""
    before = _budget.set(_Budget(limit) if limit else None)
    try:
        yield
    finally:
        # An event loop that is closed under a request ends it in another context, where nothing was set.
        with suppress(ValueError):
            _budget.reset(before)


def count_tokens(num_tokens: int) -> None:
    """Take them from the budget, if there is one. Raises BadInput, with the sum so far, when it is passed."""
    budget = _budget.get()
    if budget is None:
        return
    budget.num_tokens += num_tokens
    if budget.num_tokens > budget.limit:
        raise BadInput(
            f"the request has {budget.num_tokens} tokens or more, the limit is {budget.limit}; send fewer or"
            " shorter inputs in one request, or start the server with a larger --max-request-tokens"
        )
