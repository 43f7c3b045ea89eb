"""One loaded model at work: lets a request in or not, prepares its inputs on threads, waits for its answers.

Hops 3 to 6 of a request (docs/architecture.md), the same for every task. Knows nothing of what inputs or
answers mean (`embedding_tasks.py`, `scoring_tasks.py`), nor of HTTP or any compute library. Over 300 lines,
so that what becomes of an accepted request stands on one page.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from infinity_emb.backends.base import Encoded, Input, InputOptions, LoadedModel, Pair, Passages
from infinity_emb.completion import gather_or_cancel, open_future, open_request
from infinity_emb.config import EngineArgs
from infinity_emb.errors import (
    BadInput,
    EngineNotReady,
    ModelNotDeployedError,
    Overloaded,
    ServingError,
)
from infinity_emb.primitives import Capability, ModelInfo, OutputName, OverloadStatus
from infinity_emb.progress import open_progress_bar
from infinity_emb.worker import Item, PendingRequest, WorkerPool, WorkerStats

logger = logging.getLogger("infinity_emb")

# A request is prepared in chunks of this many inputs, so that the device starts on the first chunk while the
# next is tokenized. Images and audio take far longer each.
INPUTS_PER_CHUNK = 64
MEDIA_PER_CHUNK = 2
# Up to this many characters are tokenized on the event loop: a fraction of a millisecond, less than what
# handing over to a thread and back costs. Only of so many inputs, each of which costs something by itself.
INLINE_CHARS = 1024
MAX_INLINE_INPUTS = 16
DRAIN_TIMEOUT_S = 30.0
# What a batch that a device is computing at that deadline gets on top.
BATCH_GRACE_S = 1.5

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class Computed:
    """What one list of inputs was answered: columns with one entry per input, and tokens of each (N,)."""

    columns: Mapping[OutputName, Any]
    num_tokens: npt.NDArray[np.int64]


class RunningModel:
    """A model, its queue and device threads, and the threads that prepare inputs."""

    def __init__(self, model: LoadedModel, args: EngineArgs) -> None:
        self.model = model
        self.num_accepted_items = 0
        self._args = args
        self._num_accepted_requests = 0
        self._is_started = False
        self._on_idle: Callable[[], None] | None = None  # called when the last accepted request has ended
        self._prepare_pool: ThreadPoolExecutor | None = None
        self._pool = WorkerPool(
            model.replicas, max_batch_tokens=model.max_batch_tokens, max_batch_items=args.batch_size
        )

    def start(self) -> None:
        """Start the device threads. Raises EngineNotReady when they run already, or still."""
        self._pool.start()
        self._prepare_pool = ThreadPoolExecutor(
            self.model.num_tokenizer_threads, thread_name_prefix="infinity-tokenizer"
        )
        self._on_idle = None
        self._is_started = True

    async def stop(self, drain_timeout_s: float) -> None:
        """Finish what was accepted within the deadline, fail the rest, end the threads.

        The queue closes behind the last accepted request: some of its inputs may still be tokenized. At the
        deadline, what a device is computing gets a moment more.
        """
        if not self._is_started:
            return
        self._is_started = False
        num_failed = 0
        ended, set_ended = open_future()
        self._on_idle = lambda: self._pool.close(set_ended)
        if not self._num_accepted_requests:
            self._on_idle()
        try:
            await asyncio.wait([ended], timeout=drain_timeout_s)
            num_failed = self._pool.fail_waiting()
            self._on_idle()
            await asyncio.wait([ended], timeout=BATCH_GRACE_S)
        finally:
            num_failed += self._pool.fail_rest()
            if self._prepare_pool is not None:
                self._prepare_pool.shutdown(wait=False, cancel_futures=True)
        if num_failed:
            logger.warning("%d inputs were not finished within %g s and failed", num_failed, drain_timeout_s)

    @property
    def name(self) -> str:
        """What the model is served as."""
        return self._args.served_model_name

    @property
    def info(self) -> ModelInfo:
        """What was detected about the model."""
        return self.model.info

    def check_can(self, capability: Capability) -> None:
        """Raises ModelNotDeployedError for what the model cannot do."""
        if capability not in self.info.capabilities:
            able = ", ".join(self.info.capabilities)
            raise ModelNotDeployedError(
                f"model {self.name!r} does not support {capability!r}; it supports {able}"
            )

    @property
    def is_running(self) -> bool:
        """Whether a request that comes now will be computed."""
        return self._is_started and self._pool.is_alive

    @property
    def is_dead(self) -> bool:
        """Whether a device thread ended by itself: nothing is computed until the process is restarted."""
        return self._is_started and not self._pool.is_alive

    @property
    def stats(self) -> WorkerStats:
        """Counters since start."""
        return self._pool.stats

    @property
    def num_waiting_tokens(self) -> int:
        """Tokens in the queue."""
        return self._pool.num_waiting_tokens

    def is_overloaded(self) -> bool:
        """Whether the next request would be refused."""
        return (
            self.num_accepted_items >= self._args.max_queue_items
            or self._pool.num_waiting_tokens >= self._args.max_queue_tokens
        )

    def overload_status(self) -> OverloadStatus:
        """How full the queue is."""
        num_waiting = self._pool.num_waiting
        return OverloadStatus(
            queue_fraction=num_waiting / self._args.max_queue_items,
            queue_absolute=num_waiting,
            results_absolute=self._num_accepted_requests,
        )

    @asynccontextmanager
    async def admitted(self, num_items: int) -> AsyncIterator[None]:
        """Room for a whole request, until it has ended. Raises Overloaded, EngineNotReady, BadInput."""
        self._admit(num_items)
        try:
            yield
        finally:
            self.num_accepted_items -= num_items
            self._num_accepted_requests -= 1
            if self._on_idle is not None and not self._num_accepted_requests:
                self._on_idle()

    def _admit(self, num_items: int) -> None:
        if not self.is_running:
            raise self._not_ready()
        self._check_room(num_items, num_total=num_items)
        self.num_accepted_items += num_items
        self._num_accepted_requests += 1

    @contextmanager
    def widened(self, num_before: int, num_now: int) -> Iterator[None]:
        """Room for an admitted request whose inputs became more, while the model stops too.

        Raises Overloaded and BadInput.
        """
        num_more = num_now - num_before
        if num_more:
            self._check_room(num_more, num_total=num_now)
        self.num_accepted_items += num_more
        try:
            yield
        finally:
            self.num_accepted_items -= num_more

    def _check_room(self, num_items: int, *, num_total: int) -> None:
        limit = self._args.max_queue_items
        if num_total > limit:
            raise BadInput(f"the request has {num_total} inputs, more than the {limit} that may ever wait")
        if self.is_overloaded() or self.num_accepted_items + num_items > limit:
            raise Overloaded(
                f"model {self.name} is currently overloaded:"
                f" {self.num_accepted_items} of {limit} inputs wait already; try again later"
            )

    def _not_ready(self) -> EngineNotReady:
        return EngineNotReady(f"model {self.name!r} is not started, is shutting down or its worker died")

    async def compute(
        self, inputs: Sequence[Input], options: InputOptions, *, places: Sequence[int] | None = None
    ) -> Computed:
        """Inputs of one kind → answers, in order; equal texts and pairs are computed once.

        places: where each input (or each passage) stands in the request, for errors; in order where not
        given.
        To be called with room taken by `admitted`. Raises BadInput, BackendFailed, EngineNotReady.
        """
        distinct = list(dict.fromkeys(inputs)) if isinstance(inputs[0], (str, Pair)) else inputs
        try:
            computed = await self._compute_distinct(distinct, options)
        except ServingError as exc:
            if exc.position is None:
                raise
            # Where nothing was left out, it may be the place of a passage, of which an input has many.
            place = exc.position if distinct is inputs else inputs.index(distinct[exc.position])
            raise exc.moved_to(place if places is None else places[place]) from exc
        if len(distinct) == len(inputs):
            return computed
        position_of = {each: position for position, each in enumerate(distinct)}
        positions = [position_of[each] for each in inputs]
        return Computed(
            {name: _take(column, positions) for name, column in computed.columns.items()},
            computed.num_tokens[positions],
        )

    async def run_on_thread(self, function: Callable[[], ResultT]) -> ResultT:
        """Host work that would hold the event loop. Raises EngineNotReady where the threads have ended."""
        try:
            future = asyncio.get_running_loop().run_in_executor(self._prepare_pool, function)
        except RuntimeError as exc:  # the pool takes nothing any more
            raise self._not_ready() from exc
        try:
            # Unlike awaiting it, this tells the end of the pool from the end of the caller.
            await asyncio.wait([future])
        finally:
            future.cancel()
        if future.cancelled():
            raise self._not_ready()
        return future.result()

    async def _compute_distinct(self, inputs: Sequence[Input], options: InputOptions) -> Computed:
        bar = open_progress_bar(len(inputs), "Computing")
        pending, done = open_request(len(inputs), bar)
        size = INPUTS_PER_CHUNK if isinstance(inputs[0], (str, Pair)) else MEDIA_PER_CHUNK
        try:
            counts = await gather_or_cancel(
                self._submit_chunk(inputs[start : start + size], start, pending, options)
                for start in range(0, len(inputs), size)
            )
            await done
        except BaseException:
            pending.cancel()
            raise
        finally:
            bar.close()
        if pending.error is not None:
            # One error may end many requests: each raises it with a traceback of its own.
            raise pending.error.with_traceback(None)
        return Computed(pending.columns, np.concatenate(counts))

    async def _submit_chunk(
        self, chunk: Sequence[Input], start: int, pending: PendingRequest, options: InputOptions
    ) -> npt.NDArray[np.int64]:
        """Prepare one chunk and queue it; returns its token counts."""
        try:
            encoded = await self._prepare(chunk, options, pending)
        except BadInput as exc:
            if exc.position is None or isinstance(chunk[0], Passages):
                raise
            raise exc.moved_to(start + exc.position) from exc
        if not pending.is_cancelled:
            self._pool.submit(
                [Item(each, pending, start + position) for position, each in enumerate(encoded)]
            )
        return np.array([each.num_tokens for each in encoded], dtype=np.int64)

    async def _prepare(
        self, inputs: Sequence[Input], options: InputOptions, pending: PendingRequest
    ) -> list[Encoded]:
        """Nothing for a request that has ended: its turn on a thread may come long after that."""

        def prepare() -> list[Encoded]:
            return [] if pending.is_cancelled else self.model.prepare(inputs, options)

        return prepare() if self._is_quick(inputs, options) else await self.run_on_thread(prepare)

    def _is_quick(self, inputs: Sequence[Input], options: InputOptions) -> bool:
        if not self.model.prepares_inline or len(inputs) > MAX_INLINE_INPUTS:
            return False
        return sum(map(_num_chars, inputs)) + len(options.prompt) * len(inputs) <= INLINE_CHARS


def _num_chars(each: Input) -> int:
    """What it costs to prepare; images and audio are never cheap."""
    if isinstance(each, str):
        return len(each)
    return len(each.query) + len(each.document) if isinstance(each, Pair) else INLINE_CHARS + 1


def _take(column: Any, positions: list[int]) -> Any:
    """Each entry in memory of its own: callers change vectors in place."""
    if isinstance(column, np.ndarray):
        return column[positions]
    return [copy.deepcopy(column[at]) for at in positions]
