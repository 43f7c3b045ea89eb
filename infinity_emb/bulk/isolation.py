"""Find the inputs that make a request fail, and compute the others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from infinity_emb.bulk.rows import Rejected
from infinity_emb.errors import QUERY_POSITION, BackendFailed, BadInput, ServingError

InputT = TypeVar("InputT")


async def compute_each(
    inputs: Sequence[InputT],
    compute: Callable[[Sequence[InputT]], Awaitable[Sequence[Any]]],
    check_health: Callable[[], Awaitable[object]],
) -> list[Any]:
    """Return a result per input, or `Rejected` with the reason for those that cannot be computed.

    compute: raises BadInput or BackendFailed if some input is at fault; the inputs are then computed in
        halves, until that input is alone.
    check_health: raises if no input can be computed; called when a single input fails with BackendFailed.
    Raises all other errors of `compute`, and those of `check_health`.
    """
    try:
        results = await compute(inputs)
    except (BadInput, BackendFailed) as exc:
        if len(inputs) > 1:
            middle = len(inputs) // 2
            first = await compute_each(inputs[:middle], compute, check_health)
            return first + await compute_each(inputs[middle:], compute, check_health)
        return [await _retry_alone(inputs[0], exc, compute, check_health)]
    if len(results) != len(inputs):
        raise ServingError(f"{len(results)} results for {len(inputs)} inputs")
    return list(results)


async def _retry_alone(
    value: InputT,
    error: BadInput | BackendFailed,
    compute: Callable[[Sequence[InputT]], Awaitable[Sequence[Any]]],
    check_health: Callable[[], Awaitable[object]],
) -> Any:
    """Compute an input again if its failure may have had another cause; return its result or `Rejected`."""
    if isinstance(error, BackendFailed):
        await check_health()
        try:
            return (await compute([value]))[0]
        except (BadInput, BackendFailed) as exc:
            error = exc
    return Rejected(str(error) if error.position == QUERY_POSITION else error.reason)
