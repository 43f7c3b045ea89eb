"""Compute a list of any length in parts that fit the limits of a request and advance a progress bar."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import TypeVar

from infinity_emb.engine.progress import MIN_ITEMS, ProgressBar, is_watched, open_progress_bar
from infinity_emb.errors import QUERY_POSITION, ServingError
from infinity_emb.items import Input, count_chars, iterate_chunks

InputT = TypeVar("InputT", bound=Input)
ResultT = TypeVar("ResultT")

# Less than `MIN_ITEMS`, at which the engine would show a bar for each part.
MAX_INPUTS_PER_PART = MIN_ITEMS // 2
MAX_CHARS_PER_PART = 2**20
# Parts in the queue behind the first: batches are filled from all of them.
NUM_PARTS_AHEAD = 4


def compute_parts(
    inputs: Sequence[InputT],
    submit: Callable[[Sequence[InputT]], Future[ResultT]],
    *,
    description: str,
    show_progress: bool | None,
) -> Iterator[tuple[slice, ResultT]]:
    """Yield each part of one or more inputs with its result, in order.

    show_progress: None shows a bar for long lists, in a terminal or a notebook.
    An error names the position in the whole list, and cancels the other parts.
    """
    if show_progress is None:
        show_progress = len(inputs) >= MIN_ITEMS and is_watched()
    bar = open_progress_bar(len(inputs), description, is_shown=show_progress)
    pending: deque[tuple[slice, Future[ResultT]]] = deque()
    num_chars = list(map(count_chars, inputs))
    try:
        for part in iterate_chunks(num_chars, max_inputs=MAX_INPUTS_PER_PART, max_chars=MAX_CHARS_PER_PART):
            pending.append((part, submit(inputs[part])))
            if len(pending) > NUM_PARTS_AHEAD:
                yield _wait_for_first(pending, bar)
        while pending:
            yield _wait_for_first(pending, bar)
    finally:
        for _, future in pending:
            future.cancel()
        bar.close()


def _wait_for_first(pending: deque[tuple[slice, Future[ResultT]]], bar: ProgressBar) -> tuple[slice, ResultT]:
    """Remove the first part when it is computed."""
    part, future = pending[0]
    try:
        result = future.result()
    except ServingError as exc:
        if exc.position in (None, QUERY_POSITION):
            raise
        raise exc.at_position(part.start + exc.position) from exc.__cause__
    pending.popleft()
    bar.update(part.stop - part.start)
    return part, result
