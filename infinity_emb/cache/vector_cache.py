"""Answers that are computed once: looked up in memory and on disk, or taken from a request that is under way.

Stands between a request's inputs and what computes them, before all that is done with an answer afterwards
(dimensions, number formats, activation). Knows nothing of queues, batches or tasks.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from infinity_emb.backends.base import Input, InputOptions
from infinity_emb.cache.disk import DiskTier
from infinity_emb.cache.flights import Arrival, Flights
from infinity_emb.cache.keys import is_quick, keys_of
from infinity_emb.cache.memory import MemoryTier
from infinity_emb.cache.stats import CacheStats
from infinity_emb.caller import present_caller
from infinity_emb.computed import Computed, Entry, computed_of, entries_of
from infinity_emb.config import EngineArgs
from infinity_emb.errors import ServingError
from infinity_emb.fairness import Flow
from infinity_emb.home import home_folder
from infinity_emb.model_version import model_version
from infinity_emb.primitives import ModelInfo, OutputName
from infinity_emb.token_budget import count_tokens

# With the version of what lies in it. All models share one file, so that its limit holds for all together.
FILE_NAME = "vectors-1.sqlite3"
_MEGABYTE = 2**20

ResultT = TypeVar("ResultT")
Compute = Callable[[Sequence[int]], Awaitable[Computed]]


class RunOnThread(Protocol):
    """Host work that would hold the event loop."""

    def __call__(self, function: Callable[[], ResultT]) -> Awaitable[ResultT]: ...


class VectorCache:
    """The answers of one model, for one event loop. To be closed."""

    def __init__(self, args: EngineArgs, info: ModelInfo, run_on_thread: RunOnThread) -> None:
        self.stats = CacheStats()
        self._version = model_version(args, info)
        self._run_on_thread = run_on_thread
        self._flights = Flights()
        self._memory = MemoryTier(args.vector_memory_cache_mb * _MEGABYTE)
        self._disk: DiskTier | None = None
        if args.vector_disk_cache:
            max_bytes = args.vector_disk_cache_mb * _MEGABYTE
            self._disk = DiskTier(_folder() / FILE_NAME, max_bytes=max_bytes, stats=self.stats)

    async def close(self) -> None:
        """Write what waits to be written."""
        if self._disk is not None:
            await self._disk.close()

    async def answer(
        self, inputs: Sequence[Input], num_times: Sequence[int], options: InputOptions, compute: Compute
    ) -> Computed:
        """What `compute` would answer for all inputs; called only for those whose answer nobody has.

        inputs: all different, and of a kind that `is_cacheable`.
        num_times: how often each stands in the request.
        compute: places of inputs → what they were answered.
        Raises what `compute` raises, about a place in `inputs`.
        """
        if is_quick(inputs):
            keys = keys_of(self._version, inputs, options)
        else:
            keys = await self._run_on_thread(lambda: keys_of(self._version, inputs, options))
        request = _Request(keys, num_times, options.outputs, compute)
        request.take(range(len(keys)), self._memory.find(keys))
        missing = request.missing()
        self.stats.num_memory_hits += len(keys) - len(missing)
        if missing:
            flow = present_caller().flow(len(inputs))
            with self._flights.boarded(flow, [keys[at] for at in missing]) as boarding:
                await self._lead(request, [missing[at] for at in boarding.led], flow)
                awaited = {missing[at]: arrival for at, arrival in boarding.awaited.items()}
                await self._await_others(request, awaited)
            # What others were to bring and did not.
            await self._compute(request, request.missing())
        return request.computed()

    async def _lead(self, request: _Request, places: list[int], flow: Flow) -> None:
        """Look on disk, compute what is not there, and hand both to whoever waits for it."""
        if self._disk is not None and places:
            found = await self._disk.find([request.keys[at] for at in places])
            request.take(places, found)
            missing = [at for at in places if request.entries[at] is None]
            self.stats.num_disk_hits += len(places) - len(missing)
            there = {request.keys[at]: each for at, each in zip(places, found, strict=True) if each}
            self._keep_in_memory(there)
            self._flights.land(flow, there)
            places = missing
        self._flights.land(flow, await self._compute(request, places))

    async def _await_others(self, request: _Request, awaited: Mapping[int, Arrival]) -> None:
        arrived = [await arrival for arrival in awaited.values()]
        request.take(list(awaited), arrived)
        self.stats.num_shared += sum(entry is not None for entry in arrived)

    async def _compute(self, request: _Request, places: list[int]) -> dict[bytes, Entry]:
        """Compute and keep; what was kept, in memory of its own."""
        if not places:
            return {}
        self.stats.num_misses += len(places)
        entries = {
            request.keys[at]: entry.copied()
            for at, entry in zip(places, await request.compute_places(places), strict=True)
        }
        self._keep_in_memory(entries)
        if self._disk is not None:
            self._disk.keep_soon(entries)
        return entries

    def _keep_in_memory(self, entries: Mapping[bytes, Entry]) -> None:
        self._memory.keep(entries)
        self.stats.memory_bytes = self._memory.size_bytes


class _Request:
    """Inputs by their keys, and the answers so far."""

    def __init__(
        self, keys: list[bytes], num_times: Sequence[int], outputs: Sequence[OutputName], compute: Compute
    ) -> None:
        self.keys = keys
        self.entries: list[Entry | None] = [None] * len(keys)
        self._num_times = num_times
        self._outputs = outputs
        self._compute = compute
        self._whole: Computed | None = None  # where all was computed at once

    def missing(self) -> list[int]:
        """Places without an answer."""
        return [at for at, entry in enumerate(self.entries) if entry is None]

    def take(self, places: Sequence[int], entries: Sequence[Entry | None]) -> None:
        """Answers that were not computed for this request, whose budget of tokens they count in all the same.

        Raises BadInput where that is passed.
        """
        num_tokens = 0
        for at, entry in zip(places, entries, strict=True):
            if entry is not None:
                self.entries[at] = entry
                num_tokens += entry.num_tokens * self._num_times[at]
        count_tokens(num_tokens)

    async def compute_places(self, places: list[int]) -> list[Entry]:
        """Have the inputs in these places computed."""
        try:
            computed = await self._compute(places)
        except ServingError as exc:
            if exc.position is None:
                raise
            raise exc.moved_to(places[exc.position]) from exc
        if len(places) == len(self.keys):
            self._whole = computed
        entries = entries_of(computed, self._outputs)
        for at, entry in zip(places, entries, strict=True):
            self.entries[at] = entry
        return entries

    def computed(self) -> Computed:
        """The whole answer, in memory of its own."""
        if self._whole is not None:
            return self._whole
        return computed_of([entry for entry in self.entries if entry is not None], self._outputs)


def _folder() -> Path:
    """Beside the calibration files."""
    return home_folder(os.environ) / "vectors"
