from __future__ import annotations

import asyncio
import itertools
import threading
import time

import httpx
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from infinity_emb._version import __version__
from infinity_emb.config.server_config import ServerConfig
from infinity_emb.errors import StartupError
from infinity_emb.scheduling.paced_call import MAX_REST_S
from infinity_emb.server.metrics import DEPRECATED_COUNTERS
from infinity_emb.server.routes import system
from tests.support.tiny_server import build_debug_app, client_of, debug_args, embed

pytestmark = pytest.mark.anyio

Samples = dict[tuple[str, ...], float]


async def read_metrics(client: httpx.AsyncClient) -> Samples:
    """(name, label value, ...) → value; label values in the order of the label names."""
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


async def test_requests_are_counted_by_route_template_method_and_status(client: httpx.AsyncClient) -> None:
    await embed(client)
    await embed(client)
    await embed(client, [])
    await client.get("/v1/models/some/model")
    await client.get("/nothing/here")
    metrics = await read_metrics(client)
    assert metrics["http_requests_total", "/embeddings", "POST", "2xx"] == 2
    assert metrics["http_requests_total", "/embeddings", "POST", "4xx"] == 1
    assert metrics["http_requests_total", "/v1/models/{model_id:path}", "GET", "4xx"] == 1
    assert metrics["http_requests_total", "none", "GET", "4xx"] == 1


async def test_durations_and_sizes_are_measured(client: httpx.AsyncClient) -> None:
    response = await embed(client)
    metrics = await read_metrics(client)
    assert metrics["http_request_duration_seconds_count", "/embeddings", "POST"] == 1
    assert metrics["http_request_duration_seconds_bucket", "/embeddings", "1.0", "POST"] == 1
    assert metrics["http_request_duration_highr_seconds_count",] == 1
    assert metrics["http_request_size_bytes_sum", "/embeddings"] == len(response.request.content)
    assert metrics["http_response_size_bytes_sum", "/embeddings"] == len(response.content)


async def test_an_unexpected_method_does_not_make_a_new_series(client: httpx.AsyncClient) -> None:
    await client.request("BREW", "/embeddings")
    assert (await read_metrics(client))["http_requests_total", "/embeddings", "other", "4xx"] == 1


async def test_each_model_is_counted() -> None:
    app = build_debug_app(debug_args("first?fail_on=poison"), debug_args("second"))
    async with client_of(app) as client:
        await embed(client, ["hello", "hi"], model="first")
        await embed(client, ["fine", "poison"], model="first")
        metrics = await read_metrics(client)
    assert metrics["infinity_items_total", "first"] == 3
    assert metrics["infinity_tokens_total", "first"] == 11
    assert metrics["infinity_batches_total", "first"] >= 2
    assert metrics["infinity_failed_items_total", "first"] == 1
    assert metrics["infinity_split_batches_total", "first"] == 1
    assert metrics["infinity_compute_seconds_total", "first"] > 0
    assert metrics["infinity_items_total", "second"] == 0
    for name in ("infinity_queue_items", "infinity_queue_tokens", "infinity_pending_requests"):
        assert metrics[name, "first"] == metrics[name, "second"] == 0


async def test_batches_and_waits_are_counted_in_buckets_to_the_unit() -> None:
    async with client_of(build_debug_app(debug_args("first"), debug_args("second"))) as client:
        for number in range(7):
            await embed(client, [f"text {number}", f"other text {number}", "end"], model="first")
        metrics = await read_metrics(client)
    num_batches = metrics["infinity_batches_total", "first"]
    assert metrics["infinity_queue_seconds_count", "first"] == 21
    assert metrics["infinity_encode_seconds_count", "first"] == 7
    for name in ("infinity_batch_seconds", "infinity_batch_tokens", "infinity_batch_items"):
        assert metrics[f"{name}_count", "first"] == metrics[f"{name}_bucket", "+Inf", "first"] == num_batches
        assert metrics[f"{name}_count", "second"] == 0
    assert metrics["infinity_batch_items_sum", "first"] == 21
    assert metrics["infinity_batch_tokens_sum", "first"] == metrics["infinity_tokens_total", "first"]
    assert metrics["infinity_batch_seconds_sum", "first"] == pytest.approx(
        metrics["infinity_compute_seconds_total", "first"]
    )


async def test_models_are_described_with_their_replicas_and_waits() -> None:
    async with client_of(build_debug_app(debug_args("first"))) as client:
        metrics = await read_metrics(client)
    assert metrics["infinity_replicas", "first"] == 1
    assert metrics["infinity_max_batch_tokens", "first"] > 0
    for lane in ("bulk", "interactive"):
        assert metrics["infinity_estimated_wait_seconds", lane, "first"] == 0
    described = [labels for name, *labels in metrics if name == "infinity_model_info"]
    assert described == [["cpu", "float32", "debugengine", "embedder", "first", __version__]]


async def test_deprecated_metrics_have_the_values_of_their_successors() -> None:
    async with client_of(build_debug_app()) as client:
        await embed(client)
        metrics = await read_metrics(client)
    for old_name, name in DEPRECATED_COUNTERS.items():
        assert metrics[f"{old_name}_total", "debug"] == metrics[f"{name}_total", "debug"]


async def test_what_waits_is_shown() -> None:
    app = build_debug_app(debug_args("debug?delay_s=1", batch_size=1))
    async with client_of(app) as client:
        waiting = asyncio.create_task(embed(client, ["aa", "bb", "cc"]))
        await asyncio.sleep(0.05)
        metrics = await read_metrics(client)
        stats = (await client.get("/models/debug")).json()["stats"]
        waiting.cancel()
    assert metrics["infinity_queue_items", "debug"] == 2
    assert metrics["infinity_queue_tokens", "debug"] == 4
    assert metrics["infinity_pending_requests", "debug"] == 1
    assert (stats["queue_absolute"], stats["results_pending"]) == (2, 1)


async def test_the_process_is_described(client: httpx.AsyncClient) -> None:
    text = (await client.get("/metrics")).text
    for name in ("process_resident_memory_bytes", "python_info", "python_gc_collections_total"):
        assert f"\n{name}" in text


async def test_two_apps_in_one_process_count_by_themselves(client: httpx.AsyncClient) -> None:
    await embed(client)
    async with client_of(build_debug_app()) as other:
        assert (await read_metrics(other))["http_requests_total", "/embeddings", "POST", "2xx"] == 0
    assert (await read_metrics(client))["http_requests_total", "/embeddings", "POST", "2xx"] == 1


async def test_metrics_can_ask_for_a_key() -> None:
    async with client_of(build_debug_app(metrics="key", api_key=("secret",))) as client:
        assert (await client.get("/metrics")).status_code == 401
        answer = await client.get("/metrics", headers={"Authorization": "Bearer secret"})
        assert "http_requests_total" in answer.text
        assert (await client.get("/health")).status_code == 200


def test_metrics_that_ask_for_a_key_need_one() -> None:
    with pytest.raises(StartupError, match="--metrics key needs an --api-key"):
        ServerConfig(metrics="key")


async def test_metrics_can_be_left_out() -> None:
    async with client_of(build_debug_app(metrics="off")) as client:
        assert (await client.get("/metrics")).status_code == 404
        assert "/metrics" not in (await client.get("/openapi.json")).json()["paths"]


async def test_a_client_that_asks_again_and_again_leaves_most_of_the_time_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One rendering followed the other, and a health check waited for seconds."""
    rendered: list[tuple[float, float]] = []

    def note(registry: CollectorRegistry) -> bytes:
        started_s = time.monotonic()
        time.sleep(0.01)
        text = generate_latest(registry)
        rendered.append((started_s, time.monotonic()))
        return text

    async def ask(client: httpx.AsyncClient) -> None:
        for _ in range(5):
            assert (await client.get("/metrics")).status_code == 200

    monkeypatch.setattr(system, "generate_latest", note)
    async with client_of(build_debug_app()) as client:
        await asyncio.gather(*(ask(client) for _ in range(5)))
    assert len(rendered) >= 5
    for (began_s, ended_s), (next_s, _) in itertools.pairwise(rendered):
        assert next_s - ended_s >= min(MAX_REST_S, 3.9 * (ended_s - began_s))


async def test_metrics_are_rendered_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rendering held it for up to 66 ms, with a single model."""
    is_main: list[bool] = []

    def note(registry: CollectorRegistry) -> bytes:
        is_main.append(threading.current_thread() is threading.main_thread())
        return generate_latest(registry)

    monkeypatch.setattr(system, "generate_latest", note)
    async with client_of(build_debug_app()) as client:
        await read_metrics(client)
    assert is_main == [False]


async def test_requests_that_arrive_together_share_one_rendering(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine hundred of them, for which no key is needed, held the event loop for half a minute."""
    num_rendered = 0

    def count(registry: CollectorRegistry) -> bytes:
        nonlocal num_rendered
        num_rendered += 1
        return generate_latest(registry)

    monkeypatch.setattr(system, "generate_latest", count)
    async with client_of(build_debug_app()) as client:
        responses = await asyncio.gather(*(client.get("/metrics") for _ in range(50)))
        assert {response.status_code for response in responses} == {200}
        assert num_rendered < 10
        assert (await embed(client)).status_code == 200
        metrics = await read_metrics(client)
    assert metrics["http_requests_total", "/metrics", "GET", "2xx"] == 50
    assert metrics["http_requests_total", "/embeddings", "POST", "2xx"] == 1, "each is up to date"
