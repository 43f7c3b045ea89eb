"""Look outputs up in memory and on disk before computing them.

The cache holds raw outputs, before dimensions, dtypes and activation functions are applied.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from infinity_emb.cache.disk_tier import DiskTier
from infinity_emb.cache.keys import compute_keys, is_cacheable, is_quick
from infinity_emb.cache.memory_tier import MemoryTier
from infinity_emb.cache.single_flight import Claims, SingleFlight
from infinity_emb.cache.stats import CacheStats
from infinity_emb.config.limits import CacheOptions
from infinity_emb.items import (
    InputOptions,
    ItemOutput,
    Outputs,
    RequestInput,
    count_request_chars,
    join_outputs,
    split_outputs,
)
from infinity_emb.scheduling.fair_threads import FairThreads
from infinity_emb.scheduling.request_context import count_tokens, current_request, take_memory
from infinity_emb.storage.files import cache_dir

# All models share one file, so that its size limit applies to their sum. The number is its format's version.
FILE_NAME = "vectors-1.sqlite3"
_MEGABYTE = 2**20
# How many characters are hashed in the time it takes to tokenize one.
_CHARS_HASHED_PER_TOKENIZED = 100


class Runner(Protocol):
    """Compute the inputs of a request."""

    async def run(self, inputs: Sequence[RequestInput], options: InputOptions) -> Outputs:
        """Return outputs of inputs of one kind, in order.

        Raises BadInput, BackendFailed and EngineNotReady.
        """


class _Request(NamedTuple):
    inputs: Sequence[RequestInput]
    keys: Sequence[bytes]
    options: InputOptions


class CachedRunner:
    """Wrap the runner of one model, for one event loop. Must be closed.

    version: of the model, from `model_version`.
    threads: where the keys of large requests are computed.
    """

    def __init__(self, runner: Runner, options: CacheOptions, version: str, threads: FairThreads) -> None:
        self.stats = CacheStats()
        self._runner = runner
        self._version = version
        self._threads = threads
        self._in_flight = SingleFlight()
        self._memory: MemoryTier | None = None
        self._disk: DiskTier | None = None
        if options.vector_memory_cache_mb:
            self._memory = MemoryTier(options.vector_memory_cache_mb * _MEGABYTE)
        if options.vector_disk_cache:
            path = cache_dir(os.environ) / "vectors" / FILE_NAME
            max_bytes = options.vector_disk_cache_mb * _MEGABYTE
            self._disk = DiskTier(path, max_bytes=max_bytes, stats=self.stats)

    async def run(self, inputs: Sequence[RequestInput], options: InputOptions) -> Outputs:
        """Return what the wrapped runner would, and call it only for inputs that are not cached."""
        started_s = time.monotonic()
        values = [item.value for item in inputs]
        if not is_cacheable(values, options):
            return await self._runner.run(inputs, options)
        if is_quick(values):
            keys = compute_keys(self._version, values, options)
        else:
            keys = await self._threads.run(
                lambda: compute_keys(self._version, values, options),
                num_chars=count_request_chars(values) // _CHARS_HASHED_PER_TOKENIZED,
                num_inputs=len(values),
            )
        found = await self._find(keys)
        if (stages := current_request().stages) is not None:
            stages.add("cache", started_s)
        # Cached outputs count towards the token budget of the request, too.
        count_tokens(sum(found[key].num_tokens for key in keys if key in found))
        if missing := [key for key in dict.fromkeys(keys) if key not in found]:
            request = _Request(inputs, keys, options)
            with self._in_flight.claim(current_request().flow(len(inputs)), missing) as claims:
                computed = await self._compute(request, claims.own)
                claims.resolve(computed)
                shared = await self._wait_for_others(claims)
            self.stats.num_shared += len(shared)
            count_tokens(sum(shared[key].num_tokens for key in keys if key in shared))
            found |= computed | shared
            # Those that another request failed to compute.
            found |= await self._compute(request, [key for key in missing if key not in found])
        num_bytes = sum(found[key].count_bytes() for key in keys)
        take_memory(num_bytes)
        return await self._threads.convert(
            lambda: join_outputs([found[key] for key in keys], options.outputs), num_bytes=num_bytes
        )

    async def _wait_for_others(self, claims: Claims) -> dict[bytes, ItemOutput]:
        """Return what other requests compute, as far as they succeed."""
        started_s = time.monotonic()
        shared = await claims.wait_for_others()
        if shared and (stages := current_request().stages) is not None:
            stages.add("cache", started_s)
        return shared

    async def close(self) -> None:
        """Write what is waiting to be written."""
        if self._disk is not None:
            await self._disk.close()

    async def _find(self, keys: Sequence[bytes]) -> dict[bytes, ItemOutput]:
        found = {} if self._memory is None else self._memory.find(keys)
        self.stats.num_memory_hits += len(found)
        missing = [key for key in dict.fromkeys(keys) if key not in found]
        if missing and self._disk is not None:
            found_on_disk = await self._disk.find(missing)
            self.stats.num_disk_hits += len(found_on_disk)
            self._keep_in_memory(found_on_disk)
            found |= found_on_disk
        return found

    async def _compute(self, request: _Request, keys: Collection[bytes]) -> dict[bytes, ItemOutput]:
        """Compute the inputs with these keys and store copies, as callers may change theirs in place."""
        if not keys:
            return {}
        self.stats.num_misses += len(keys)
        indices = [index for index, key in enumerate(request.keys) if key in keys]
        computed = await self._runner.run([request.inputs[index] for index in indices], request.options)
        split = split_outputs(computed, request.options.outputs)
        outputs = {request.keys[index]: output for index, output in zip(indices, split, strict=True)}
        copies = await self._threads.convert(
            lambda: {key: output.copy() for key, output in outputs.items()}, num_bytes=computed.count_bytes()
        )
        self._keep_in_memory(copies)
        if self._disk is not None:
            self._disk.write_later(copies)
        return copies

    def _keep_in_memory(self, outputs: Mapping[bytes, ItemOutput]) -> None:
        if self._memory is not None:
            self._memory.keep(outputs)
            self.stats.memory_bytes = self._memory.size_bytes
