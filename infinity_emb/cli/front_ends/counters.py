"""The counters of one model in a front end, and their sums."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import asdict, replace

from infinity_emb.cache.stats import CacheStats
from infinity_emb.cli.front_ends.frames import Header
from infinity_emb.engine.status import EngineStatus

_COUNTERS = ("num_requests", "num_timed_out_requests", "num_cancelled_requests", "num_refused_requests")


def read_counters(status: EngineStatus) -> Header:
    """Return the counters of an engine in this process, as JSON values."""
    encode_s = status.histograms["encode_s"]
    counters = {name: getattr(status, name) for name in _COUNTERS}
    return {**counters, "encode_s": [encode_s.counts, encode_s.total], "cache": asdict(status.cache)}


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
    sums = read_counters(status)
    for report in reports:
        sums = add_counters(sums, report)
    cache = CacheStats(**sums.pop("cache"))
    counts, total = sums.pop("encode_s")
    encode_s = status.histograms["encode_s"]._replace(counts=counts, total=total)
    return replace(status, **sums, cache=cache, histograms={**status.histograms, "encode_s": encode_s})
