"""TEI's response headers about the cost of a request.

The times of tokenizing and queueing are left out: here they overlap with inference within one request.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Iterable
from typing import TypeAlias, TypeVar

from starlette.responses import Response

from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.items import TokenIdsInput

ResultT = TypeVar("ResultT")
Counted: TypeAlias = "str | TokenIdsInput | tuple[str, str]"


class Stopwatch:
    """Measure one request; starts when created."""

    def __init__(self) -> None:
        self._started_at = time.perf_counter()
        self._compute_s = 0.0

    async def time(self, computing: Awaitable[ResultT]) -> ResultT:
        """Await an engine's result and measure how long it takes, queueing included."""
        started_at = time.perf_counter()
        result = await computing
        self._compute_s += time.perf_counter() - started_at
        return result

    def stamp(
        self, response: Response, engine: AsyncEmbeddingEngine, inputs: Iterable[Counted], *, num_tokens: int
    ) -> Response:
        """Add headers to the response: counts, and times in whole milliseconds."""
        total_s = time.perf_counter() - self._started_at
        response.headers.update(
            {
                "x-compute-type": engine.info.device,
                "x-compute-time": f"{1000 * self._compute_s:.0f}",
                "x-total-time": f"{1000 * total_s:.0f}",
                "x-compute-characters": str(_count_characters(inputs)),
                "x-compute-tokens": str(num_tokens),
            }
        )
        return response


def _count_characters(inputs: Iterable[Counted]) -> int:
    """Count characters without prompts; a token id counts as one."""
    return sum(len(item) if isinstance(item, str) else sum(map(len, item)) for item in inputs)
