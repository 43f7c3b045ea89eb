"""Describe what the process is doing, for `kill -USR1 <pid>`: queues, worker threads, tasks and stacks.

Inputs, vectors and keys are not part of it.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator

from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.engine.status import EngineStatus


def describe_state(engines: Iterable[AsyncEmbeddingEngine]) -> list[str]:
    """Return lines for the log; call in the event loop."""
    return [*_describe_models(engines), *_describe_tasks(), *_describe_threads()]


def _describe_models(engines: Iterable[AsyncEmbeddingEngine]) -> Iterator[str]:
    for engine in engines:
        yield f"model {engine.engine_args.served_model_name!r}"
        for name, value in _describe_status(engine.status()).items():
            yield f"  {name}: {value}"


def _describe_status(status: EngineStatus) -> dict[str, object]:
    return {
        "running": status.is_running,
        "loaded": status.is_loaded,
        "accepted": f"{status.num_requests} requests of {status.num_items} inputs",
        "refused": f"{status.num_refused_requests} requests",
        "timed out": f"{status.num_timed_out_requests} requests",
        "cancelled": f"{status.num_cancelled_requests} requests",
        "estimated wait": {lane: f"{wait_s:.2f} s" for lane, wait_s in status.estimated_wait_s.items()},
        **status.pool,
    }


def _describe_tasks() -> Iterator[str]:
    """Count the tasks that wait at the same line."""
    tasks = asyncio.all_tasks()
    yield f"{len(tasks)} tasks"
    lines: Counter[str] = Counter()
    for task in tasks:
        stack = task.get_stack(limit=1)
        where = f"{stack[0].f_code.co_filename}:{stack[0].f_lineno}" if stack else "nowhere"
        lines[f"{task.get_coro()!r:.60} at {where}"] += 1
    yield from (f"  {number} x {line}" for line, number in lines.most_common(20))


def _describe_threads() -> Iterator[str]:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sys._current_frames()
    yield f"{len(frames)} threads"
    for ident, frame in frames.items():
        yield f"  {names.get(ident, ident)}"
        for entry in traceback.extract_stack(frame)[-4:]:
            yield f"    {entry.filename}:{entry.lineno} {entry.name}"
