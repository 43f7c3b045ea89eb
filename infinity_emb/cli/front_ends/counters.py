"""The counters of one model in a front end, and their sums."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import asdict, replace

from infinity_emb.cache.stats import CacheStats
from infinity_emb.cli.front_ends.frames import Header
from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.engine.status import EngineStatus


def read_counters(engine: AsyncEmbeddingEngine) -> Header:
    """Return the counters of an engine in this process, as JSON values."""
    encode_s = engine.host.pool.histograms.encode_s.snapshot()
    return {
        "num_requests": engine.gate.num_requests,
        "num_timed_out": engine.gate.num_timed_out,
        "num_cancelled": engine.gate.num_cancelled,
        "num_refused": engine.gate.admission.num_refused,
        "encode_s": [encode_s.counts, encode_s.total],
        "cache": asdict(engine.host.cache_stats),
    }


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


def sum_counters(status: EngineStatus, reports: Iterable[Header]) -> EngineStatus:
    """Add the counters of front ends to the status of the engine process."""
    encode_s = status.histograms["encode_s"]
    counters: Header = {
        "num_requests": status.num_requests,
        "num_timed_out": status.num_timed_out_requests,
        "num_cancelled": status.num_cancelled_requests,
        "num_refused": status.num_refused_requests,
        "encode_s": [encode_s.counts, encode_s.total],
        "cache": asdict(status.cache),
    }
    for report in reports:
        counters = add_counters(counters, report)
    counts, total = counters["encode_s"]
    return replace(
        status,
        num_requests=counters["num_requests"],
        num_timed_out_requests=counters["num_timed_out"],
        num_cancelled_requests=counters["num_cancelled"],
        num_refused_requests=counters["num_refused"],
        cache=CacheStats(**counters["cache"]),
        histograms={**status.histograms, "encode_s": encode_s._replace(counts=counts, total=total)},
    )
