"""Run the inputs of a request through a loaded model: encode in chunks, queue, wait, collect."""

from __future__ import annotations

import asyncio
import operator
import time
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from infinity_emb.backends.base import LoadedModel
from infinity_emb.concurrency import LoopCalls, OncePerTurn, call_in_loop, gather_or_cancel
from infinity_emb.engine.interrupts import cancelled_by_interrupt
from infinity_emb.engine.progress import ProgressBar, open_progress_bar
from infinity_emb.items import (
    InputOptions,
    Outputs,
    RequestInput,
    copy_value,
    count_value_bytes,
    is_tokenized,
    iterate_chunks,
    list_num_chars,
)
from infinity_emb.scheduling.fair_threads import MAX_SHORT_CHARS, FairThreads
from infinity_emb.scheduling.request_context import count_tokens, current_memory, current_request, take_memory
from infinity_emb.scheduling.requests import Item, PendingRequest
from infinity_emb.scheduling.worker_pool import WorkerPool, unfinished
from infinity_emb.types import OutputName

# A request is encoded in chunks of this many inputs, so that the device starts on the first chunk while the
# next one is tokenized. Images and audio take far longer each. Long texts are in chunks of their own, so that
# other requests get their turn on the threads.
INPUTS_PER_CHUNK = 64
MEDIA_PER_CHUNK = 2
# Cost of preparing an image or a clip on the threads, in characters of text.
CHARS_PER_MEDIA_INPUT = 2**14
# Up to this many characters are tokenized on the event loop: a fraction of a millisecond, less than the
# hand-over to a thread and back costs. Each input has a fixed cost, so their number is limited too.
INLINE_CHARS = 1024
MAX_INLINE_INPUTS = 16
_FLOAT_BYTES = 4
_TOKEN_BYTES = 4
# Outputs whose size does not depend on the length of the text.
_FIXED_OUTPUTS = frozenset[OutputName]({"dense", "maxsim"})


class ModelRunner:
    """Compute with one loaded model."""

    def __init__(self, model: LoadedModel, pool: WorkerPool, threads: FairThreads) -> None:
        self._model = model
        self._pool = pool
        self._threads = threads
        self.is_closed = False  # the pool may compute with another model by now
        self._calls: LoopCalls | None = None  # of the loop that made the latest request
        # Requests that arrive together are computed together.
        self._wake_workers = OncePerTurn(pool.queue.wake)

    async def run(self, inputs: Sequence[RequestInput], options: InputOptions) -> Outputs:
        """Return outputs of inputs of one kind, in order; equal inputs are computed once.

        Raises BadInput, BackendFailed and EngineNotReady.
        """
        unique = find_unique(inputs)
        bar = open_progress_bar(len(unique.inputs), "Computing")
        request, done = self._open_request(len(unique.inputs), bar)
        chunks = unique.split(len(options.prompt))
        try:
            self._hold_outputs(request, done, options)
            with cancelled_by_interrupt(request):
                if len(chunks) == 1:
                    counts = [await self._submit(chunks[0], request, options)]
                else:
                    counts = await gather_or_cancel(self._submit(chunk, request, options) for chunk in chunks)
                await done
            if request.error is not None:
                # One error may end many requests: raise it without the traceback of another request.
                raise request.error.with_traceback(None)
            if request.stages is not None:
                request.stages.add("wake", request.stages.reached_s)
            outputs = Outputs(request.outputs, np.concatenate(counts) if len(counts) > 1 else counts[0])
        except BaseException:
            request.cancel()
            raise
        finally:
            bar.close()
            # Breaks the reference cycle of an error and this frame, which would keep the outputs in memory.
            del request, done
        if not unique.has_duplicates:
            return outputs
        num_bytes = unique.count_copied_bytes(outputs)
        take_memory(num_bytes)
        return await self._threads.convert(lambda: unique.expand(outputs), num_bytes=num_bytes)

    def _open_request(self, num_items: int, bar: ProgressBar) -> tuple[PendingRequest, asyncio.Future[None]]:
        """Return an empty request, and a future of the running loop that is done when the request is."""
        loop = asyncio.get_running_loop()
        if self._calls is None or self._calls.loop is not loop:
            self._calls = LoopCalls(loop)
        calls, done = self._calls, loop.create_future()

        def end() -> None:
            if not done.done():
                done.set_result(None)

        on_progress = (lambda number: calls.add(lambda: bar.update(number))) if bar.is_shown else None
        context = current_request()
        request = PendingRequest(
            num_items,
            lambda _: calls.add(end),
            on_progress,
            flow=context.flow(num_items),
            stages=context.stages,
        )
        return request, done

    async def _submit(
        self, chunk: _Chunk, request: PendingRequest, options: InputOptions
    ) -> npt.NDArray[np.int64]:
        """Encode a chunk and queue it, unless the request has ended; return its token counts."""
        started_s = time.monotonic()
        if self._fits_inline(chunk):
            encoded = self._model.encode(chunk.inputs, options)
        else:
            # By the time a thread is free the request may have ended.
            encoded = await self._threads.run(
                lambda: [] if request.is_cancelled else self._model.encode(chunk.inputs, options),
                num_chars=chunk.num_chars,
                num_inputs=request.num_items,
            )
        ended_s = time.monotonic()
        self._pool.histograms.encode_s.observe(ended_s - started_s)
        if request.stages is not None:
            request.stages.add("tokenize", started_s, ended_s)
        counts = [item.num_tokens for item in encoded]
        if self.is_closed:
            raise unfinished()
        if not request.is_cancelled:
            count_tokens(sum(map(operator.mul, counts, chunk.num_occurrences)))
            take_memory(sum(counts) * _TOKEN_BYTES)
            self._pool.queue.submit(
                [Item(item, request, index, ended_s) for index, item in enumerate(encoded, chunk.start)],
                wakes=False,
            )
            self._wake_workers.request()
        return np.array(counts, dtype=np.int64)

    def _hold_outputs(
        self, request: PendingRequest, done: asyncio.Future[None], options: InputOptions
    ) -> None:
        """Count the outputs in the memory of the HTTP request: dense ones now, others when they are computed.

        If there is no room, raises the error of the memory budget, or lets `done` raise it and cancels the
        queued items.
        """
        if "dense" in options.outputs:
            take_memory(request.num_items * self._model.info.embedding_dimension * _FLOAT_BYTES)
        if _FIXED_OUTPUTS.issuperset(options.outputs):
            return
        memory, loop = current_memory(), asyncio.get_running_loop()
        request_ref = weakref.ref(request)  # which refers to `hold`
        request.on_outputs = lambda num_bytes: call_in_loop(loop, lambda: hold(num_bytes))

        def hold(num_bytes: int) -> None:
            if not memory.take(num_bytes) and not done.done():
                if (pending := request_ref()) is not None:
                    pending.cancel()
                done.set_exception(memory.make_error())

    def _fits_inline(self, chunk: _Chunk) -> bool:
        is_small = len(chunk.inputs) <= MAX_INLINE_INPUTS and chunk.num_chars <= INLINE_CHARS
        return is_small and self._model.prepares_inline


class _Chunk(NamedTuple):
    """Some of the distinct inputs of a request, from `start` on, and how often each occurs in it."""

    inputs: Sequence[RequestInput]
    num_occurrences: Sequence[int]
    start: int
    num_chars: int


class UniqueInputs(NamedTuple):
    """The distinct inputs of a request.

    indices: for each input of the request, the index of the equal input in `inputs`.
    """

    inputs: Sequence[RequestInput]
    num_occurrences: Sequence[int]
    indices: Sequence[int]

    @property
    def has_duplicates(self) -> bool:
        """Return true if an input occurs more than once."""
        return len(self.inputs) < len(self.indices)

    def split(self, num_prompt_chars: int) -> list[_Chunk]:
        """Return the inputs in chunks that are encoded one by one."""
        values = [item.value for item in self.inputs]
        counts = [num_prompt_chars + number for number in list_num_chars(values, CHARS_PER_MEDIA_INPUT)]
        max_inputs = INPUTS_PER_CHUNK if is_tokenized(values[0]) else MEDIA_PER_CHUNK
        num_chars = sum(counts)
        if len(values) <= max_inputs and num_chars <= MAX_SHORT_CHARS:
            return [_Chunk(self.inputs, self.num_occurrences, 0, num_chars)]
        return [
            _Chunk(self.inputs[part], self.num_occurrences[part], part.start, sum(counts[part]))
            for part in iterate_chunks(counts, max_inputs=max_inputs, max_chars=MAX_SHORT_CHARS)
        ]

    def count_copied_bytes(self, outputs: Outputs) -> int:
        """Return the size of what `expand` returns."""
        return sum(
            number * count_value_bytes(value)
            for output in outputs.by_name.values()
            for number, value in zip(self.num_occurrences, output, strict=True)
        )

    def expand(self, outputs: Outputs) -> Outputs:
        """Return one output per input of the request; no two share memory."""
        return Outputs(
            {name: _take(output, self.indices) for name, output in outputs.by_name.items()},
            outputs.num_tokens[list(self.indices)],
        )


def find_unique(inputs: Sequence[RequestInput]) -> UniqueInputs:
    """Find equal texts, pairs and token ids; images and audio are not compared."""
    is_single = len(inputs) == 1 or not is_tokenized(inputs[0].value)
    if is_single or len({item.value for item in inputs}) == len(inputs):
        return UniqueInputs(inputs, [1] * len(inputs), range(len(inputs)))
    index_by_value: dict[Any, int] = {}
    indices = [index_by_value.setdefault(item.value, len(index_by_value)) for item in inputs]
    distinct: list[RequestInput] = []
    for item, index in zip(inputs, indices, strict=True):
        if index == len(distinct):
            distinct.append(item)
    return UniqueInputs(distinct, np.bincount(indices).tolist(), indices)


def _take(output: Any, indices: Sequence[int]) -> Any:
    """Copy the entries at these indices, as callers may change vectors in place."""
    if isinstance(output, np.ndarray):
        return output[list(indices)]
    return [copy_value(output[index]) for index in indices]
