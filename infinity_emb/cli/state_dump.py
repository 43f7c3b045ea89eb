"""What the process is at, for whoever has to find out why it is slow or does not answer: `kill -USR1 <pid>`.

Queues, device threads, tasks of the event loop and the stack of every thread; no text, no vector, no key.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator

from infinity_emb.engine import AsyncEmbeddingEngine


def describe_state(engines: Iterable[AsyncEmbeddingEngine]) -> list[str]:
    """Lines for a log; called in the event loop."""
    return [*_models(engines), *_tasks(), *_threads()]


def _models(engines: Iterable[AsyncEmbeddingEngine]) -> Iterator[str]:
    for engine in engines:
        yield f"model {engine.engine_args.served_model_name!r}"
        for name, value in engine.describe_state().items():
            yield f"  {name}: {value}"


def _tasks() -> Iterator[str]:
    """How many wait at which place."""
    tasks = asyncio.all_tasks()
    yield f"{len(tasks)} tasks"
    places: Counter[str] = Counter()
    for task in tasks:
        stack = task.get_stack(limit=1)
        where = f"{stack[0].f_code.co_filename}:{stack[0].f_lineno}" if stack else "nowhere"
        places[f"{task.get_coro()!r:.60} at {where}"] += 1
    yield from (f"  {number} x {place}" for place, number in places.most_common(20))


def _threads() -> Iterator[str]:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sys._current_frames()
    yield f"{len(frames)} threads"
    for ident, frame in frames.items():
        yield f"  {names.get(ident, ident)}"
        yield from (
            f"    {each.filename}:{each.lineno} {each.name}" for each in traceback.extract_stack(frame)[-4:]
        )
