"""One model at work: lets a request in or not, prepares its inputs on threads, waits for its answers.

Hops 3 to 6 of a request (docs/architecture.md), the same for every task. Knows nothing of what inputs or
answers mean (`embedding_tasks.py`, `scoring_tasks.py`), nor of HTTP or any compute library. Over 300 lines,
so that what becomes of an accepted request stands on one page.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from infinity_emb.admission import Admission, Backlog, Progress
from infinity_emb.backends.base import Encoded, Ids, Input, InputOptions, LoadedModel, Pair, Passages
from infinity_emb.cache.keys import is_cacheable
from infinity_emb.cache.stats import CacheStats
from infinity_emb.cache.vector_cache import VectorCache
from infinity_emb.caller import present_caller
from infinity_emb.completion import deadline, gather_or_cancel, open_future, open_request
from infinity_emb.computed import Computed
from infinity_emb.config import EngineArgs
from infinity_emb.errors import (
    BadInput,
    DeadlineExceeded,
    EngineNotReady,
    ModelNotDeployedError,
    ServingError,
)
from infinity_emb.fairness import LANE_WEIGHTS
from infinity_emb.pending import Item, PendingRequest
from infinity_emb.primitives import Capability, Lane, OverloadStatus
from infinity_emb.progress import open_progress_bar
from infinity_emb.residence import Residence
from infinity_emb.token_budget import count_tokens, token_budget
from infinity_emb.worker import WorkerPool, WorkerStats

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

# Inputs that become tokens: equal ones are computed once, and many are prepared at a time.
_TOKENIZED = (str, Pair, Ids)

ResultT = TypeVar("ResultT")


class RunningModel:
    """A model, its queue and device threads, and the threads that prepare inputs.

    load: makes the model again, where it was given up.
    """

    def __init__(
        self, model: LoadedModel, args: EngineArgs, load: Callable[[], LoadedModel] | None = None
    ) -> None:
        self.info = model.info  # what was detected about the model
        self.has_token_rows = model.has_token_rows
        self.on_open: Callable[[], None] = lambda: None  # called in the event loop, before it computes
        self.on_death: Callable[[], None] = lambda: None  # called once, on any thread
        self._args = args
        self.num_late_requests = 0  # dropped, as their time was over
        self.num_cancelled_requests = 0  # by who asked, mostly by hanging up
        self._num_accepted_requests = 0
        self._is_started = False
        self._on_idle: Callable[[], None] | None = None  # called when the last request inside has ended
        self._residence = Residence(
            self.name, model, load or (lambda: model), self, idle_unload_s=args.idle_unload_s
        )
        self._num_parallel = 1
        self._prepare_pool: ThreadPoolExecutor | None = None
        self._cache: VectorCache | None = None
        self._pool = WorkerPool(
            model.replicas,
            max_batch_tokens=model.max_batch_tokens,
            max_batch_items=args.batch_size,
            batch_timeout_s=args.batch_timeout_s or math.inf,
            on_death=lambda: self.on_death(),
        )
        self._admission = Admission(
            name=args.served_model_name,
            max_items=args.max_queue_items,
            max_tokens=args.max_queue_tokens,
            max_wait_s=args.max_queue_wait_s or math.inf,
            progress=self._progress,
            backlog=self._backlog,
        )

    def start(self) -> None:
        """Start the device threads. Raises EngineNotReady when they run already, or still."""
        self._residence.start()
        self._is_started = True

    async def stop(self, drain_timeout_s: float) -> None:
        """Finish what was accepted within the deadline, fail the rest, end the threads."""
        if self._is_started:
            self._is_started = False
            await self._residence.stop(drain_timeout_s)

    async def give_up(self, drain_timeout_s: float) -> None:
        """The same, and give the model's memory back. Where it is started again, it is loaded again."""
        await self.stop(drain_timeout_s)
        await self._residence.give_up(drain_timeout_s)

    async def reload(self, drain_timeout_s: float) -> None:
        """Load the model anew; requests wait for it meanwhile. Raises StartupError and EngineNotReady."""
        if not self._is_started:
            raise self._not_ready()
        await self._residence.reload(drain_timeout_s)

    def open(self, model: LoadedModel) -> None:
        """For `Residence`: start the device threads, and those that prepare inputs."""
        self.info = model.info
        self._pool.start(model.replicas)
        self._num_parallel = sum(replica.num_in_flight for replica in model.replicas)
        self._prepare_pool = ThreadPoolExecutor(
            model.num_tokenizer_threads, thread_name_prefix="infinity-tokenizer"
        )
        if self._args.vector_disk_cache or self._args.vector_memory_cache_mb:
            self._cache = VectorCache(self._args, self.info, self.run_on_thread)
        self._on_idle = None
        self.on_open()

    async def close(self, drain_timeout_s: float) -> None:
        """For `Residence`: finish what is inside within the deadline, fail the rest, end the threads.

        The queue closes behind the last request inside: some of its inputs may still be tokenized. At the
        deadline, what a device is computing gets a moment more.
        """
        num_failed = 0
        ended, set_ended = open_future()
        self._on_idle = lambda: self._pool.close(set_ended)
        if not self._pool.is_alive:  # what was accepted has failed, and a thread that hangs does not end
            drain_timeout_s = 0.0
        if not self._residence.num_inside:
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
            if self._cache is not None:
                await self._cache.close()
        if num_failed:
            logger.warning("%d inputs were not finished within %g s and failed", num_failed, drain_timeout_s)

    def let_go(self) -> bool:
        """For `Residence`: forget the model."""
        self._prepare_pool = None
        return self._pool.forget_backends()

    @property
    def model(self) -> LoadedModel:
        """To be asked for inside of `admitted`. Raises EngineNotReady where it is not loaded."""
        if self._residence.model is None:
            raise self._not_ready()
        return self._residence.model

    @property
    def is_loaded(self) -> bool:
        """Whether the model is in memory."""
        return self._residence.model is not None

    @property
    def name(self) -> str:
        """What the model is served as."""
        return self._args.served_model_name

    def check_can(self, capability: Capability) -> None:
        """Raises ModelNotDeployedError for what the model cannot do."""
        if capability not in self.info.capabilities:
            able = ", ".join(self.info.capabilities)
            raise ModelNotDeployedError(
                f"model {self.name!r} does not support {capability!r}; it supports {able}"
            )

    @property
    def is_running(self) -> bool:
        """Whether a request that comes now will be computed; one that is not loaded will be loaded for it."""
        return self._is_started and (self._pool.is_alive or not self._residence.is_open)

    @property
    def is_ready(self) -> bool:
        """Whether a device computes now, or will for who asks; false while it comes back from a death."""
        return self._is_started and (self._pool.is_ready or not self._residence.is_open)

    @property
    def is_dead(self) -> bool:
        """Whether a device thread ended for good: nothing is computed until the process is restarted."""
        return self._is_started and self._residence.is_open and not self._pool.is_alive

    @property
    def stats(self) -> WorkerStats:
        """Counters since start."""
        return self._pool.stats

    @property
    def cache_stats(self) -> CacheStats:
        """What was not computed again since start, and why."""
        return CacheStats() if self._cache is None else self._cache.stats

    @property
    def num_waiting_tokens(self) -> int:
        """Tokens in the queue."""
        return self._pool.num_waiting_tokens

    @property
    def num_accepted_items(self) -> int:
        """Inputs that were accepted and are not answered yet."""
        return self._admission.num_accepted_items

    @property
    def num_refused_requests(self) -> int:
        """Since start, as there was no room."""
        return self._admission.num_refused

    def estimated_wait_s(self, lane: Lane) -> float:
        """Seconds that an input that comes now would wait for a device; 0 where nothing is known yet."""
        return self._admission.estimated_wait_s(lane)

    def describe_state(self) -> dict[str, object]:
        """What a person wants to know who finds the model slow or stuck."""
        wait_s = {lane: f"{self.estimated_wait_s(lane):.2f} s" for lane in LANE_WEIGHTS}
        return {
            "running": self.is_running,
            "loaded": self.is_loaded,
            "accepted": f"{self._num_accepted_requests} requests of {self.num_accepted_items} inputs",
            "refused": f"{self.num_refused_requests} requests",
            "late": f"{self.num_late_requests} requests",
            "cancelled": f"{self.num_cancelled_requests} requests",
            "estimated wait": wait_s,
            **self._pool.describe_state(),
        }

    def is_overloaded(self) -> bool:
        """Whether the next request would be refused."""
        return self._admission.is_full()

    def check_room(self) -> None:
        """Raises Overloaded where the next request would be refused, whatever it is."""
        if self.is_running:
            self._admission.check_room()

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
        """Room for a whole request and the loaded model, until it has ended, or its time has.

        Raises Overloaded, EngineNotReady, BadInput, DeadlineExceeded.
        """
        if not self.is_running:
            raise self._not_ready()
        caller = present_caller()
        lane = caller.flow(num_items).lane
        self._admission.take(num_items, lane)
        self._num_accepted_requests += 1
        try:
            async with deadline(caller.timeout_s or self._args.request_timeout_s or None), self._inside():
                with token_budget(self._args.max_request_tokens):
                    yield
        except DeadlineExceeded:
            self.num_late_requests += 1
            raise
        except asyncio.CancelledError:
            self.num_cancelled_requests += 1
            raise
        finally:
            self._admission.give_back(num_items, lane)
            self._num_accepted_requests -= 1

    @asynccontextmanager
    async def _inside(self) -> AsyncIterator[None]:
        """Where the model is, and stays."""
        await self._residence.enter()
        try:
            yield
        finally:
            self._residence.leave()
            if self._on_idle is not None and not self._residence.num_inside:
                self._on_idle()

    @contextmanager
    def widened(self, num_before: int, num_now: int) -> Iterator[None]:
        """Room for an admitted request whose inputs became more, while the model stops too.

        Raises Overloaded and BadInput.
        """
        num_more = num_now - num_before
        lane = present_caller().flow(num_before).lane
        if num_more:
            self._admission.take(num_more, lane, num_total=num_now)
        try:
            yield
        finally:
            self._admission.give_back(num_more, lane)

    def _progress(self) -> Progress:
        stats = self._pool.stats
        return Progress(stats.num_items, stats.num_tokens, stats.busy_s, self._num_parallel)

    def _backlog(self) -> Backlog:
        return Backlog(self._pool.num_waiting_tokens, self._pool.num_waiting_interactive_tokens)

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
        distinct, num_times = inputs, [1] * len(inputs)
        if isinstance(inputs[0], _TOKENIZED):
            counter = Counter(inputs)
            distinct, num_times = list(counter), list(counter.values())
        try:
            computed = await self._answer_distinct(distinct, num_times, options)
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

    async def _answer_distinct(
        self, inputs: Sequence[Input], num_times: Sequence[int], options: InputOptions
    ) -> Computed:
        """From the cache, where there is one and it has the answer."""
        if self._cache is None or not is_cacheable(inputs, options):
            return await self._compute_distinct(inputs, num_times, options)

        def compute(places: Sequence[int]) -> Awaitable[Computed]:
            times = [num_times[at] for at in places]
            return self._compute_distinct([inputs[at] for at in places], times, options)

        return await self._cache.answer(inputs, num_times, options, compute)

    async def _compute_distinct(
        self, inputs: Sequence[Input], num_times: Sequence[int], options: InputOptions
    ) -> Computed:
        bar = open_progress_bar(len(inputs), "Computing")
        pending, done = open_request(len(inputs), bar, present_caller().flow(len(inputs)))
        size = INPUTS_PER_CHUNK if isinstance(inputs[0], _TOKENIZED) else MEDIA_PER_CHUNK
        parts = [slice(start, start + size) for start in range(0, len(inputs), size)]
        try:
            counts = await gather_or_cancel(
                self._submit_chunk(inputs[part], num_times[part], part.start, pending, options)
                for part in parts
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
        self,
        chunk: Sequence[Input],
        num_times: Sequence[int],
        start: int,
        pending: PendingRequest,
        options: InputOptions,
    ) -> npt.NDArray[np.int64]:
        """Prepare one chunk and queue it unless the request has too many tokens; returns its token counts.

        num_times: how often each input stands in the request, which counts them all.
        """
        try:
            encoded = await self._prepare(chunk, options, pending)
        except BadInput as exc:
            if exc.position is None or isinstance(chunk[0], Passages):
                raise
            raise exc.moved_to(start + exc.position) from exc
        counts = np.array([each.num_tokens for each in encoded], dtype=np.int64)
        if not pending.is_cancelled:
            count_tokens(int(counts @ num_times))
            self._pool.submit(
                [Item(each, pending, start + position) for position, each in enumerate(encoded)]
            )
        return counts

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
    if isinstance(each, Ids):
        return len(each.ids)
    return len(each.query) + len(each.document) if isinstance(each, Pair) else INLINE_CHARS + 1


def _take(column: Any, positions: list[int]) -> Any:
    """Each entry in memory of its own: callers change vectors in place."""
    if isinstance(column, np.ndarray):
        return column[positions]
    return [copy.deepcopy(column[at]) for at in positions]
