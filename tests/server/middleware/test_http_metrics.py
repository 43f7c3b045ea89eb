from __future__ import annotations

import gc
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, Summary, generate_latest

from infinity_emb.server.middleware.http_metrics import (
    EXPECTED_STATUSES,
    FEW_BUCKETS,
    MANY_BUCKETS,
    HTTPMetrics,
)
from infinity_emb.server.middleware.request_counters import RequestCounters

# Path, seconds, and bytes of body and response; 0.005 s and 10 s are bounds of buckets.
OBSERVED = [
    (path, seconds, 100 * number, 1000 * number)
    for number, seconds in enumerate((0.0001, 0.005, 0.3, 10.0, 61.5))
    for path in ("/embeddings", "/rerank")
]


def render_counted_by_the_library() -> list[str]:
    registry = CollectorRegistry()
    options: Any = {"registry": registry}
    text = "Requests by route template, method and status group."
    requests = Counter("http_requests", text, ["handler", "method", "status"], **options)
    name, text = "http_request_duration_seconds", "Duration of requests in seconds by route."
    durations = Histogram(name, text, ["handler", "method"], buckets=FEW_BUCKETS, **options)
    name = "http_request_duration_highr_seconds"
    text = "Duration of requests in seconds over all routes, in many buckets."
    all_durations = Histogram(name, text, buckets=MANY_BUCKETS, **options)
    text = "Declared size of request bodies in bytes."
    sizes_in = Summary("http_request_size_bytes", text, ["handler"], **options)
    text = "Size of response bodies in bytes."
    sizes_out = Summary("http_response_size_bytes", text, ["handler"], **options)
    for status in EXPECTED_STATUSES:
        requests.labels("/embeddings", "POST", status)
    for path, seconds, num_bytes_in, num_bytes_out in OBSERVED:
        requests.labels(path, "POST", "2xx").inc()
        durations.labels(path, "POST").observe(seconds)
        all_durations.observe(seconds)
        sizes_in.labels(path).observe(num_bytes_in)
        sizes_out.labels(path).observe(num_bytes_out)
    return generate_latest(registry).decode().splitlines()


def make_metrics() -> HTTPMetrics:
    no_models: Any = SimpleNamespace(is_loaded=False)
    return HTTPMetrics(RequestCounters(no_models, []), [("POST", "/embeddings")])


def observe(
    metrics: HTTPMetrics, path: str, *, seconds: float = 0.1, num_bytes_in: int = 0, num_bytes_out: int = 0
) -> None:
    scope = {"method": "POST", "route": SimpleNamespace(path=path)}
    metrics.observe(
        scope, status=200, seconds=seconds, num_bytes_in=num_bytes_in, num_bytes_out=num_bytes_out
    )


def test_the_metrics_are_those_that_prometheus_client_itself_counts() -> None:
    metrics = make_metrics()
    for path, seconds, num_bytes_in, num_bytes_out in OBSERVED:
        observe(metrics, path, seconds=seconds, num_bytes_in=num_bytes_in, num_bytes_out=num_bytes_out)
    registry = CollectorRegistry()
    registry.register(metrics)
    rendered = [line for line in generate_latest(registry).decode().splitlines() if "infinity_" not in line]
    expected = [line for line in render_counted_by_the_library() if "_created" not in line]
    assert rendered == expected


def test_metrics_are_read_on_one_thread_while_another_counts() -> None:
    metrics = make_metrics()

    def count() -> None:
        for number in range(3_000):
            observe(metrics, f"/{number}")

    def let_others_run(*_: object) -> None:
        time.sleep(0)

    counting = threading.Thread(target=count)
    interval_s, thresholds = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-6)
    gc.set_threshold(50)
    gc.callbacks.append(let_others_run)  # as finalizers do
    try:
        counting.start()
        while counting.is_alive():
            list(metrics.collect())
    finally:
        gc.callbacks.remove(let_others_run)
        gc.set_threshold(*thresholds)
        sys.setswitchinterval(interval_s)
        counting.join()
    assert sum(sample.value for sample in next(metrics.collect()).samples) == 3_000
