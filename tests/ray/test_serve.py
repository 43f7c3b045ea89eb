"""Models served by Ray Serve, while replicas and nodes come and go."""

from __future__ import annotations

import concurrent.futures
import os
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from ray import serve
from ray.serve.config import HTTPOptions

from tests.ray.conftest import OBJECT_STORE_BYTES
from tests.ray.serving import (
    DEADLINE_S,
    Served,
    count_replicas,
    embed_like_openai,
    embed_once,
    find_free_port,
    list_replica_pids,
    loading,
    wait_for,
)

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

FAKE = {"engine": "debugengine", "model_id": "debug", "served_model_name": "a"}
RERANKER = {"engine": "debugengine", "model_id": "debug?kind=reranker", "served_model_name": "org/b"}
TWO = {"name": "a", "num_replicas": 2}


@pytest.fixture(scope="module")
def served(cluster: Any) -> Iterator[Served]:
    port = find_free_port()
    serve.start(proxy_location="HeadOnly", http_options=HTTPOptions(host="127.0.0.1", port=port))
    yield Served(f"http://127.0.0.1:{port}")
    serve.shutdown()


@pytest.fixture(scope="module")
def two_models(served: Served) -> Iterator[httpx.Client]:
    """An embedder and a reranker behind the router, with a key, and little room in the reranker."""
    served.deploy(
        {
            "models": [FAKE, RERANKER | {"model_id": "debug?kind=reranker&delay_s=0.5"}],
            "server": {"api_key": "a-long-key"},
        },
        [
            {"name": "a"},
            {"name": "org-b", "max_ongoing_requests": 1, "max_queued_requests": 1},
            {"name": "Router", "num_replicas": 1},
        ],
    )
    headers = {"authorization": "Bearer a-long-key"}
    with httpx.Client(base_url=served.url, headers=headers, timeout=DEADLINE_S) as client:
        yield client


def test_the_router_finds_the_model_by_the_name_in_the_body(two_models: httpx.Client) -> None:
    response = two_models.post("/v1/embeddings", json={"model": "a", "input": "four"})
    assert response.json()["data"][0]["embedding"][0] == 4
    assert response.json()["model"] == "a"
    ranked = two_models.post("/rerank", json={"model": "org/b", "query": "q", "documents": ["a", "bb"]})
    assert [each["index"] for each in ranked.json()["results"]] == [1, 0]
    deployment = two_models.post("/openai/deployments/a/embeddings", json={"input": "four"})
    assert deployment.json()["model"] == "a"


def test_a_request_without_a_name_goes_to_the_only_model_for_its_task(two_models: httpx.Client) -> None:
    assert two_models.post("/embeddings", json={"input": "x"}).json()["model"] == "a"
    ranked = two_models.post("/rerank", json={"query": "q", "documents": ["a"]})
    assert ranked.json()["model"] == "org/b"
    assert two_models.post("/embed", json={"inputs": "x"}).status_code == 200


def test_lists_hold_all_models(two_models: httpx.Client) -> None:
    assert [each["id"] for each in two_models.get("/v1/models").json()["data"]] == ["a", "org/b"]
    assert len(two_models.get("/api/tags").json()["models"]) == 2
    assert two_models.get("/models/org/b").json()["id"] == "org/b"
    assert two_models.get("/ready").json() == {"ready": True}


def test_errors_have_the_shape_of_the_api(two_models: httpx.Client) -> None:
    unknown = two_models.post("/embeddings", json={"model": "c", "input": "x"})
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (404, "model")
    assert unknown.headers["x-should-retry"] == "false"
    assert two_models.post("/embeddings", content=b"{").status_code == 422
    keyless = two_models.post("/embeddings", json={"input": "x"}, headers={"authorization": ""})
    assert (keyless.status_code, keyless.json()["error"]["type"]) == (401, "authentication_error")
    dialect = two_models.post("/v2/embed", json={"model": "c", "texts": ["x"], "input_type": "search_query"})
    assert "error" not in dialect.json()
    assert "message" in dialect.json()


def test_each_response_has_one_request_id(two_models: httpx.Client) -> None:
    response = two_models.post("/embeddings", json={"input": "x"}, headers={"x-request-id": "mine"})
    assert response.headers.get_list("x-request-id") == ["mine"]


def test_back_pressure_of_serve_is_a_429_that_clients_understand(two_models: httpx.Client) -> None:
    body = {"model": "org/b", "query": "q", "documents": ["a"]}
    with concurrent.futures.ThreadPoolExecutor(12) as threads:
        responses = list(threads.map(lambda _: two_models.post("/rerank", json=body), range(12)))
    refused = [each for each in responses if each.status_code != 200]
    assert refused
    assert len(refused) < len(responses)
    for response in refused:
        assert response.status_code == 429
        assert response.json()["error"]["type"] == "rate_limit_error"
        assert response.headers["retry-after"] == "1"


def test_the_engine_refuses_in_the_same_shape(served: Served) -> None:
    served.deploy(FAKE | {"model_id": "debug?delay_s=0.5", "max_queue_items": 2}, [{"name": "a"}])
    with (
        httpx.Client(base_url=served.url, timeout=DEADLINE_S) as client,
        concurrent.futures.ThreadPoolExecutor(12) as threads,
    ):
        responses = list(threads.map(lambda _: client.post("/embeddings", json={"input": "x"}), range(12)))
    statuses = {each.status_code: each for each in responses}
    assert statuses.keys() == {200, 429}
    assert statuses[429].json()["error"]["type"] == "rate_limit_error"


def test_a_killed_replica_loses_no_request(served: Served) -> None:
    served.deploy(FAKE, [TWO])
    with loading(embed_like_openai(served.url, "a")):
        os.kill(list_replica_pids("a")[0], signal.SIGKILL)
        wait_for(lambda: count_replicas("a") < 2, "lost")
        wait_for(lambda: count_replicas("a") == 2, "replaced")


def test_the_router_repeats_what_a_killed_replica_has_lost(served: Served) -> None:
    served.deploy(FAKE | {"router": True}, [TWO, {"name": "Router", "num_replicas": 1}])
    with loading(embed_once(served.url, "a")):
        os.kill(list_replica_pids("a")[0], signal.SIGKILL)
        wait_for(lambda: count_replicas("a") < 2, "lost")
        wait_for(lambda: count_replicas("a") == 2, "replaced")


def test_a_rolling_upgrade_fails_no_request(served: Served) -> None:
    served.deploy(FAKE, [TWO])
    before = set(list_replica_pids("a"))
    with loading(embed_once(served.url, "a")):
        served.upgrade(FAKE | {"model_id": "debug?delay_s=0.01"}, [TWO])
        wait_for(lambda: not before & set(list_replica_pids("a")), "upgraded")


def test_replicas_follow_the_load(served: Served) -> None:
    autoscaling = {
        "min_replicas": 1,
        "max_replicas": 2,
        "target_ongoing_requests": 2,
        "upscale_delay_s": 1,
        "downscale_delay_s": 2,
        "metrics_interval_s": 0.5,
        "look_back_period_s": 2,
    }
    served.deploy(
        FAKE | {"model_id": "debug?delay_s=0.1"}, [{"name": "a", "autoscaling_config": autoscaling}]
    )
    assert count_replicas("a") == 1
    with loading(embed_once(served.url, "a"), num_threads=8):
        wait_for(lambda: count_replicas("a") == 2, "scaled up")
    wait_for(lambda: count_replicas("a") == 1, "scaled down")


def test_an_engine_that_died_is_replaced(served: Served) -> None:
    served.deploy(
        FAKE | {"model_id": "debug?die_on=poison"},
        [
            {
                "name": "a",
                "autoscaling_config": {"min_replicas": 1, "max_replicas": 1},
                "health_check_period_s": 0.5,
            }
        ],
    )
    [before] = list_replica_pids("a")
    with httpx.Client(base_url=served.url, timeout=DEADLINE_S) as client:
        for _ in range(20):
            if client.post("/embeddings", json={"input": "poison"}).status_code == 503:
                break
    wait_for(lambda: before not in list_replica_pids("a") and count_replicas("a") == 1, "replaced")
    assert embed_like_openai(served.url, "a")("four")[0] == 4


def test_a_killed_node_loses_no_request(served: Served, cluster: Any) -> None:
    """Two more nodes have a replica each; one of them ends at once."""
    options = {"num_cpus": 1, "resources": {"worker": 1}, "object_store_memory": OBJECT_STORE_BYTES}
    nodes = [cluster.add_node(**options) for _ in range(2)]
    on_workers = {"ray_actor_options": {"num_cpus": 0.1, "resources": {"worker": 1}}}
    try:
        served.deploy(FAKE, [TWO | on_workers])
        with loading(embed_like_openai(served.url, "a")) as load:
            cluster.remove_node(nodes.pop(), allow_graceful=False)
            wait_for(lambda: count_replicas("a") == 1, "lost")
            num_before = load.num_done
            wait_for(lambda: load.num_done > num_before + 20, "answering")
            nodes.append(cluster.add_node(**options))
            wait_for(lambda: count_replicas("a") == 2, "replaced")
    finally:
        for node in nodes:
            cluster.remove_node(node)
