"""Compute the inputs of rows, sorted by length, so that batches hold inputs of similar length."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from infinity_emb.bulk.isolation import compute_each
from infinity_emb.bulk.rows import Rejected, RowInput, count_chars
from infinity_emb.bulk.tasks import Executor
from infinity_emb.concurrency import gather_or_cancel
from infinity_emb.items import iterate_chunks

_MAX_REQUEST_CHARS = 2**20


async def compute_rows(
    inputs: Sequence[RowInput | Rejected], executor: Executor, probe: RowInput, slots: asyncio.Semaphore
) -> list[Any]:
    """Return the results of rows in their order, `Rejected` for rows without one.

    probe: an input that can be computed.
    slots: limits the number of concurrent requests.
    Raises errors that end the job.
    """
    results: list[Any] = list(inputs)
    good = [index for index, value in enumerate(results) if not isinstance(value, Rejected)]
    good.sort(key=lambda index: count_chars(results[index]), reverse=True)
    counts = [count_chars(results[index]) for index in good]
    chunks = iterate_chunks(counts, max_inputs=executor.inputs_per_request, max_chars=_MAX_REQUEST_CHARS)

    async def check_health() -> None:
        await executor.compute([probe])

    async def compute(indices: Sequence[int]) -> None:
        async with slots:
            chunk = [results[index] for index in indices]
            computed = await compute_each(chunk, executor.compute, check_health)
            for index, result in zip(indices, computed, strict=True):
                results[index] = result

    await gather_or_cancel([compute(good[chunk]) for chunk in chunks if good])
    return results
