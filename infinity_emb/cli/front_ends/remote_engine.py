"""An engine of a front end: everything but the batches, which the engine process computes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from infinity_emb.backends.base import Backend, LoadedModel
from infinity_emb.cache.stats import CacheStats
from infinity_emb.cli.front_ends.client import EngineClient, engine_lost
from infinity_emb.cli.front_ends.frames import Header
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.engine.parts import EngineParts, assemble_parts
from infinity_emb.engine.status import EngineStatus
from infinity_emb.errors import EngineNotReady, StartupError
from infinity_emb.hardware import MemoryUse
from infinity_emb.scheduling.completion import WorkerStats
from infinity_emb.scheduling.fair_queue import Flow
from infinity_emb.scheduling.histogram import HistogramSnapshot
from infinity_emb.scheduling.requests import Item
from infinity_emb.scheduling.work_queue import WorkQueue
from infinity_emb.scheduling.worker_pool import WorkerPool, unfinished


class RemoteQueue(WorkQueue):
    """Send items to the engine process instead of queueing them here."""

    def __init__(self, client: EngineClient, model: int) -> None:
        super().__init__(max_batch_tokens=1, max_batch_items=1)
        self._client = client
        self._model = model

    @property
    def is_accepting(self) -> bool:
        return super().is_accepting and not self._client.link.is_lost

    def submit(self, items: list[Item], *, wakes: bool = True) -> None:
        if not self.is_accepting:
            raise self.not_ready()
        self._client.submit(self._model, items)

    def not_ready(self) -> EngineNotReady:
        return engine_lost() if self._client.link.is_lost else super().not_ready()


class RemotePool(WorkerPool):
    """The worker pool of the engine process, as a front end sees it."""

    def __init__(self, client: EngineClient, model: int) -> None:
        super().__init__([], max_batch_tokens=1, max_batch_items=1)
        self.queue = RemoteQueue(client, model)
        self._client = client
        self._model = model

    @property
    def state(self) -> Header:
        """Return the latest state from the engine process; empty before the first."""
        return self._client.states[self._model] if self._client.states else {}

    @property
    def is_alive(self) -> bool:
        return self.queue.is_accepting and not self.state.get("is_dead", False)

    @property
    def is_ready(self) -> bool:
        return self.is_alive and self._client.is_answering and self.state.get("is_ready", True)

    @property
    def stats(self) -> WorkerStats:
        return WorkerStats(*self.state.get("worker", ()))

    def start(self, backends: Sequence[Backend] = ()) -> None:
        """Accept items: the threads are those of the engine process."""
        self.queue.open()

    def close(self, on_closed: Callable[[], None]) -> None:
        """Refuse new items. What was accepted ends with the requests that wait for it."""
        self.queue.close()
        on_closed()

    def fail_queued(self) -> int:
        """Refuse new items and fail those that the engine process has, queued or not."""
        self.queue.close()
        return self._client.fail_all(self._model, unfinished())

    def fail_all(self) -> int:
        return self.fail_queued()


class RemoteEngine(AsyncEmbeddingEngine):
    """An engine that encodes its inputs here and has them computed by the engine process."""

    def __init__(
        self, engine: AsyncEmbeddingEngine, client: EngineClient, number: int, *, num_front_ends: int
    ) -> None:
        self._client = client
        self._number = number
        self._load_parts = partial(_assemble, engine.slot.model, num_front_ends=num_front_ends)
        super().__init__(_share_cache(engine.engine_args, num_front_ends))
        self._pool = self.host.pool = RemotePool(client, number)
        self.gate.hold_elsewhere = self._hold

    def status(self) -> EngineStatus:
        """Return the state of the engine process, with the counters of all front ends."""
        own, state = super().status(), self._pool.state
        if not state:
            return own
        counters = self.report()
        for report in self._client.reports:
            if (other := report.get("models", {}).get(own.name)) is not None:
                counters = add_counters(counters, other)
        return replace(
            own,
            is_ready=self.slot.is_ready,
            is_overloaded=state["is_overloaded"],
            num_items=state["num_items"],
            num_waiting_items=state["num_waiting_items"],
            num_waiting_tokens=state["num_waiting_tokens"],
            queue_fraction=state["queue_fraction"],
            estimated_wait_s=state["estimated_wait_s"],
            num_refused_requests=counters["num_refused"] + state["num_refused_requests"],
            num_requests=counters["num_requests"],
            num_timed_out_requests=counters["num_timed_out"],
            num_cancelled_requests=counters["num_cancelled"],
            worker=self._pool.stats,
            cache=CacheStats(**counters["cache"]),
            num_replicas=state["num_replicas"],
            device_memory=MemoryUse(*state["device_memory"]),
            histograms={
                name: _snapshot(
                    snapshot.bounds, counters[name] if name == "encode_s" else state["histograms"][name]
                )
                for name, snapshot in own.histograms.items()
            },
            pool=state["pool"],
        )

    def is_overloaded(self) -> bool:
        """Return true when the engine process would refuse the next request, by its latest state."""
        return super().is_overloaded() or bool(self._pool.state.get("is_overloaded", False))

    def report(self) -> Header:
        """Return the counters of this front end."""
        encode_s = self.host.pool.histograms.encode_s.snapshot()
        return {
            "num_requests": self.gate.num_requests,
            "num_timed_out": self.gate.num_timed_out,
            "num_cancelled": self.gate.num_cancelled,
            "num_refused": self.gate.admission.num_refused,
            "encode_s": [encode_s.counts, encode_s.total],
            "cache": asdict(self.host.cache_stats),
        }

    def _hold(self, num_items: int, flow: Flow, num_total: int) -> AbstractContextManager[None]:
        if not num_items:
            return nullcontext()
        return self._client.hold(self._number, num_items, flow, num_total)


def add_counters(counters: Header, others: Header) -> Header:
    """Return the sums of two reports about one model."""
    sums = {
        name: value + others[name] for name, value in counters.items() if name not in ("encode_s", "cache")
    }
    counts = list(map(operator.add, counters["encode_s"][0], others["encode_s"][0]))
    cache = {
        # The size of one file that all processes share.
        name: max(value, others["cache"][name]) if name == "disk_bytes" else value + others["cache"][name]
        for name, value in counters["cache"].items()
    }
    return {**sums, "encode_s": [counts, counters["encode_s"][1] + others["encode_s"][1]], "cache": cache}


def keep_counters(counters: Header) -> Header:
    """Return the counters of a front end that has ended: its totals, without its gauges."""
    return {**counters, "num_requests": 0, "cache": {**counters["cache"], "memory_bytes": 0, "disk_bytes": 0}}


def _snapshot(bounds: Sequence[float], counts_and_total: Sequence[Any]) -> HistogramSnapshot:
    counts, total = counts_and_total
    return HistogramSnapshot(bounds, counts, total)


def _share_cache(args: EngineArgs, num_front_ends: int) -> EngineArgs:
    """Divide the memory of the cache; the file on disk is shared."""
    return replace(args, vector_memory_cache_mb=-(-args.vector_memory_cache_mb // num_front_ends))


def _assemble(model: LoadedModel | None, args: EngineArgs, *, num_front_ends: int) -> EngineParts:
    """Put an engine together around a model that this process must not compute with."""
    assert model is not None, "the model was unloaded before the front ends were made"

    def refuse_to_load() -> LoadedModel:
        raise StartupError("front ends load no models; start the server with --api-servers 1")

    remote = replace(
        model,
        num_tokenizer_threads=max(1, model.num_tokenizer_threads // num_front_ends),
        free_memory=lambda: None,
        measure_memory=lambda: MemoryUse(0, 0),
    )
    return assemble_parts(remote, args, refuse_to_load)
