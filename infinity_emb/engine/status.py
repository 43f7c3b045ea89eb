"""Describe one engine at one moment, for `/models`, `/metrics`, `/health` and the state dump."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from infinity_emb.cache.stats import CacheStats
from infinity_emb.engine.gate import RequestGate
from infinity_emb.engine.slot import ModelSlot
from infinity_emb.hardware import MemoryUse
from infinity_emb.scheduling.completion import WorkerStats
from infinity_emb.scheduling.fair_queue import LANE_WEIGHTS
from infinity_emb.scheduling.histogram import HistogramSnapshot
from infinity_emb.types import Lane, ModelInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatus:
    """The state of one engine; counters start when it is first loaded.

    is_running: a new request would be computed, after a load if need be.
    is_ready: as is_running, and no worker thread is restarting.
    is_dead: a worker thread has crashed for good; only a restart of the process helps.
    is_loaded: the model is in memory.
    estimated_wait_s: how long a new input of each lane would wait; 0 until known.
    histograms: by the names of `StageHistograms`.
    device_memory: of the model's devices, used by this process and in total; zeros while it is unloaded.
    pool: a description of the queue and each worker thread.
    """

    name: str
    info: ModelInfo
    max_batch_tokens: int
    is_running: bool
    is_ready: bool
    is_dead: bool
    is_loaded: bool
    num_requests: int  # accepted, not yet completed
    num_items: int  # their inputs
    num_waiting_items: int  # in the queue
    num_waiting_tokens: int
    queue_fraction: float  # 1.0: full
    estimated_wait_s: Mapping[Lane, float]
    num_refused_requests: int
    num_timed_out_requests: int
    num_cancelled_requests: int
    worker: WorkerStats
    cache: CacheStats
    num_replicas: int
    device_memory: MemoryUse
    histograms: Mapping[str, HistogramSnapshot]
    pool: Mapping[str, object]


def _measure_memory(measure: Callable[[], MemoryUse]) -> MemoryUse:
    """Measure once a second at most: it reads files, which takes longer than the rest of the status."""
    return _measure_in_second(measure, int(time.monotonic()))


@lru_cache(maxsize=64)
def _measure_in_second(measure: Callable[[], MemoryUse], second: int) -> MemoryUse:
    return measure()


def take_status(slot: ModelSlot, gate: RequestGate, *, max_batch_tokens: int) -> EngineStatus:
    """Take a snapshot; cheap enough for each scrape and each health check."""
    pool, admission = slot.host.pool, gate.admission
    return EngineStatus(
        name=slot.name,
        info=slot.info,
        max_batch_tokens=max_batch_tokens,
        is_running=slot.is_running,
        is_ready=slot.is_ready,
        is_dead=slot.is_dead,
        is_loaded=slot.is_loaded,
        num_requests=gate.num_requests,
        num_items=admission.num_accepted_items,
        num_waiting_items=len(pool.queue),
        num_waiting_tokens=pool.queue.num_tokens,
        queue_fraction=len(pool.queue) / admission.max_items,
        estimated_wait_s={lane: admission.estimated_wait_s(lane) for lane in LANE_WEIGHTS},
        num_refused_requests=admission.num_refused,
        num_timed_out_requests=gate.num_timed_out,
        num_cancelled_requests=gate.num_cancelled,
        worker=pool.stats,
        cache=replace(slot.host.cache_stats),
        num_replicas=pool.num_replicas,
        device_memory=MemoryUse(0, 0) if slot.model is None else _measure_memory(slot.model.measure_memory),
        histograms=pool.histograms.snapshot(),
        pool=pool.describe_state(),
    )
