"""Send requests in a closed loop, whose clients wait for responses, or in an open loop, at a given rate."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from infinity_emb.cli.bench.connections import ConnectionPool, Reply, Target

OK = "200"


@dataclass(frozen=True, slots=True)
class Result:
    """One request, in seconds since the load began.

    due_s: when it should have been sent. Latency counts from here: a slow server delays later requests too,
        which timing from the moment of sending would miss ("coordinated omission").
    index: of the request in the list.
    """

    due_s: float
    sent_s: float
    received_s: float
    outcome: str
    num_tokens: int | None
    index: int

    @property
    def is_ok(self) -> bool:
        return self.outcome == OK

    @property
    def latency_s(self) -> float:
        return self.received_s - self.due_s


@dataclass(frozen=True, slots=True)
class Span:
    """The duration of a load, or its number of requests."""

    seconds: float | None = None
    num_requests: int | None = None

    def allows(self, index: int, elapsed_s: float) -> bool:
        """Return true if one more request is to be sent."""
        if self.num_requests is not None:
            return index < self.num_requests
        return elapsed_s < (self.seconds or 0.0)


async def run_closed(
    requests: Sequence[bytes], target: Target, *, num_clients: int, span: Span, timeout_s: float = 300
) -> list[Result]:
    """Let each client send its next request when it has received the last response.

    requests: sent in a cycle.
    """
    pool = ConnectionPool(target, timeout_s=timeout_s)
    results: list[Result] = []
    started_s = time.perf_counter()
    next_index = 0

    async def client() -> None:
        nonlocal next_index
        while span.allows(next_index, due_s := time.perf_counter() - started_s):
            index, next_index = next_index % len(requests), next_index + 1
            reply = await pool.exchange(requests[index])
            results.append(_make_result(reply, started_s, due_s, index))

    await asyncio.gather(*(client() for _ in range(num_clients)))
    pool.close()
    return results


async def run_open(
    requests: Sequence[bytes],
    target: Target,
    *,
    arrivals: Iterator[float],
    span: Span,
    timeout_s: float = 300,
) -> list[Result]:
    """Send each request when it is due, regardless of earlier responses; wait for all responses.

    arrivals: when each request is due, in seconds since the load began, in ascending order.
    """
    pool = ConnectionPool(target, timeout_s=timeout_s)
    results: list[Result] = []
    tasks: set[asyncio.Task[None]] = set()
    started_s = time.perf_counter()

    async def send(index: int, due_s: float) -> None:
        reply = await pool.exchange(requests[index])
        results.append(_make_result(reply, started_s, due_s, index))

    for number, due_s in enumerate(arrivals):
        if not span.allows(number, due_s):
            break
        # Without a pause the responses would not be read while the generator is late.
        await asyncio.sleep(max(0.0, started_s + due_s - time.perf_counter()))
        task = asyncio.create_task(send(number % len(requests), due_s))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    while tasks:
        await asyncio.wait(tasks)
    pool.close()
    return results


def iterate_poisson(per_s: float, seed: int) -> Iterator[float]:
    """Yield the times of independent arrivals at an average rate."""
    generator, due_s = random.Random(seed), 0.0
    while True:
        due_s += generator.expovariate(per_s)
        yield due_s


def _make_result(reply: Reply, started_s: float, due_s: float, index: int) -> Result:
    return Result(
        due_s=due_s,
        sent_s=reply.sent_s - started_s,
        received_s=reply.received_s - started_s,
        outcome=reply.outcome,
        num_tokens=reply.num_tokens,
        index=index,
    )
