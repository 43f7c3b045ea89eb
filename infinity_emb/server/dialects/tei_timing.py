"""The headers by which Text Embeddings Inference tells what a request cost.

Those about tokenizing and waiting are left out: some inputs of a request are tokenized while others of it are
computed, so that it has no such times of its own. Knows nothing of routes.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Iterable
from typing import TypeAlias, TypeVar

from starlette.responses import Response

from infinity_emb.backends.base import Ids
from infinity_emb.engine import AsyncEmbeddingEngine

AnswerT = TypeVar("AnswerT")
Counted: TypeAlias = "str | Ids | tuple[str, str]"


class Stopwatch:
    """Started when it is made; for one request."""

    def __init__(self) -> None:
        self._started_at = time.perf_counter()
        self._compute_s = 0.0

    async def time(self, computing: Awaitable[AnswerT]) -> AnswerT:
        """Wait for what an engine computes; waiting for others' requests is a part of it."""
        started_at = time.perf_counter()
        answer = await computing
        self._compute_s += time.perf_counter() - started_at
        return answer

    def stamp(
        self, response: Response, engine: AsyncEmbeddingEngine, inputs: Iterable[Counted], *, num_tokens: int
    ) -> Response:
        """The same response with the headers: what was read, and times in whole milliseconds."""
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
    """Of texts and pairs of texts, without prompts; a token id counts as one."""
    return sum(len(each) if isinstance(each, str) else sum(map(len, each)) for each in inputs)
