"""The figures of a server over a span of time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infinity_emb.cli.top.samples import Filter, Labels, Window, divide

_HISTOGRAM = "http_request_duration_seconds"
_CACHE_HITS = (
    "infinity_cache_memory_hits_total",
    "infinity_cache_disk_hits_total",
    "infinity_cache_shared_total",
)
_NOT_WORK = re.compile(r"^none$|/admin/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Figures of one span; None if nothing happened or the server does not report them.

    batch_fill: tokens per batch, relative to the token budget.
    busy: share of the time that replicas compute; above 1 for several.
    """

    seconds: float
    requests_per_s: float | None
    errors_per_s: float | None
    inputs_per_s: float | None
    tokens_per_s: float | None
    batch_items: float | None
    batch_fill: float | None
    busy: float | None
    p50_s: float | None
    p99_s: float | None
    cache_hit_rate: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFigures:
    """One served model, and its figures of a span."""

    name: str
    kind: str
    engine: str
    device: str
    dtype: str
    is_loaded: bool
    queue_items: int
    pending_requests: int
    inputs_per_s: float | None
    tokens_per_s: float | None
    cache_hit_rate: float | None


def derive_figures(window: Window) -> Figures:
    """Return the figures of all models."""
    p50_s, p99_s = window.quantiles(_HISTOGRAM, (0.5, 0.99), _is_work)
    return Figures(
        seconds=window.seconds,
        requests_per_s=window.rate("http_requests_total", _is_work),
        errors_per_s=window.rate(
            "http_requests_total", lambda labels: _is_work(labels) and labels["status"][0] in "45"
        )
        or 0.0,
        inputs_per_s=window.rate("infinity_items_total"),
        tokens_per_s=window.rate("infinity_tokens_total"),
        batch_items=divide(window.growth("infinity_items_total"), window.growth("infinity_batches_total")),
        batch_fill=divide(window.growth("infinity_tokens_total"), _count_batch_room(window)),
        busy=window.rate("infinity_compute_seconds_total"),
        p50_s=p50_s,
        p99_s=p99_s,
        cache_hit_rate=_find_hit_rate(window, lambda _: True),
    )


def describe_models(models: list[Mapping[str, Any]], window: Window) -> list[ModelFigures]:
    """Return one row for each entry of `/models`."""
    return [_describe_model(entry, window) for entry in models]


def _describe_model(entry: Mapping[str, Any], window: Window) -> ModelFigures:
    is_mine, stats = _is_model(entry["id"]), entry.get("stats", {})
    return ModelFigures(
        name=entry["id"],
        kind=entry.get("kind", ""),
        engine=entry.get("engine", ""),
        device=entry.get("device", ""),
        dtype=entry.get("dtype", ""),
        is_loaded=entry.get("is_loaded", True),
        queue_items=stats.get("queue_absolute", 0),
        pending_requests=stats.get("results_pending", 0),
        inputs_per_s=window.rate("infinity_items_total", is_mine),
        tokens_per_s=window.rate("infinity_tokens_total", is_mine),
        cache_hit_rate=_find_hit_rate(window, is_mine),
    )


def _is_work(labels: Labels) -> bool:
    """Return true for requests to models, which are POST; probes and monitoring use GET."""
    return labels["method"] == "POST" and not _NOT_WORK.search(labels["handler"])


def _count_batch_room(window: Window) -> float:
    """Return the sum of the token budgets of the batches in the span."""
    return sum(
        budget * (window.growth("infinity_batches_total", _is_model(labels["model"])) or 0)
        for labels, budget in window.latest("infinity_max_batch_tokens")
    )


def _is_model(name: str) -> Filter:
    return lambda labels: labels.get("model") == name


def _find_hit_rate(window: Window, is_wanted: Filter) -> float | None:
    hits = sum(window.growth(name, is_wanted) or 0 for name in _CACHE_HITS)
    misses = window.growth("infinity_cache_misses_total", is_wanted) or 0
    return divide(hits, hits + misses)
