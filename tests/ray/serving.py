"""Deploy applications as `serve run` does, and load them with clients that count what failed."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import httpx
import ray
from openai import OpenAI, OpenAIError
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

DEADLINE_S = 150.0
PAUSE_S = 0.05  # of a client between two requests
CPU_SHARE = {"num_cpus": 0.1}
APPLICATION = "infinity"


def find_free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


class Served(NamedTuple):
    """The address of Serve, and how applications are deployed there."""

    url: str

    def deploy(self, args: Mapping[str, Any], deployments: Sequence[Mapping[str, Any]] = ()) -> None:
        """Replace the application, which is quicker than an upgrade, and wait until it runs as asked."""
        serve.delete(APPLICATION)
        self.upgrade(args, deployments)

    def upgrade(self, args: Mapping[str, Any], deployments: Sequence[Mapping[str, Any]]) -> None:
        """Deploy the application, and wait until it runs as asked."""
        application = {
            "name": APPLICATION,
            "route_prefix": "/",
            "import_path": "infinity_emb.ray_serve:build",
            "args": dict(args),
            "deployments": [{"ray_actor_options": CPU_SHARE, **each} for each in deployments],
        }
        config = ServeDeploySchema.model_validate({"applications": [application]})
        _get_global_client().deploy_apps(config)
        wait_for(lambda: serve.status().applications[APPLICATION].status == "RUNNING", "running")


def wait_for(is_reached: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        if is_reached():
            return
        time.sleep(0.5)  # each look costs the controller time
    raise TimeoutError(f"not {what} after {DEADLINE_S} s: {serve.status()}")


def count_replicas(deployment: str) -> int:
    """Return the number of replicas that run."""
    return int(
        serve.status().applications[APPLICATION].deployments[deployment].replica_states.get("RUNNING", 0)
    )


def list_replica_pids(deployment: str) -> list[int]:
    """Return the process ids of the replicas of a deployment."""
    details = ray.get(_get_global_client()._controller.get_serve_instance_details.remote())
    replicas = details["applications"][APPLICATION]["deployments"][deployment]["replicas"]
    return [each["pid"] for each in replicas if each["state"] == "RUNNING"]


class Load:
    """Embed texts on several threads, and check every vector of the fake engine."""

    def __init__(self, embed: Callable[[str], Sequence[float]]) -> None:
        self.num_done = 0
        self.failures: list[BaseException] = []
        self._embed = embed
        self._is_over = threading.Event()

    def run(self) -> None:
        number = 0
        while not self._is_over.is_set():
            text = "x" * (1 + number % 50)
            try:
                vector = self._embed(text)
                assert vector[0] == len(text)
            except (AssertionError, httpx.HTTPError, OpenAIError) as exc:
                self.failures.append(exc)
            self.num_done += 1
            number += 1
            # The clients share the cores with the replicas that start meanwhile.
            self._is_over.wait(PAUSE_S)

    def stop(self) -> None:
        self._is_over.set()


@contextmanager
def loading(embed: Callable[[str], Sequence[float]], num_threads: int = 4) -> Iterator[Load]:
    """Load the server meanwhile; at the end no request may have failed."""
    load = Load(embed)
    threads = [threading.Thread(target=load.run, daemon=True) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    try:
        yield load
        num_before = load.num_done
        wait_for(lambda: load.num_done > num_before + 20, "answering")
    finally:
        load.stop()
        for thread in threads:
            thread.join(DEADLINE_S)
    assert not load.failures, (len(load.failures), load.num_done, load.failures[0])


def embed_like_openai(url: str, model: str) -> Callable[[str], Sequence[float]]:
    """Embed with OpenAI's client and the retries that it makes by default."""
    client = OpenAI(base_url=f"{url}/v1", api_key="any", timeout=DEADLINE_S)
    return lambda text: client.embeddings.create(model=model, input=text).data[0].embedding


def embed_once(url: str, model: str) -> Callable[[str], Sequence[float]]:
    """Embed without any retry."""
    client = httpx.Client(base_url=url, timeout=DEADLINE_S)

    def embed(text: str) -> Sequence[float]:
        response = client.post("/embeddings", json={"model": model, "input": text})
        assert response.status_code == 200, (response.status_code, response.text)
        vector: Sequence[float] = response.json()["data"][0]["embedding"]
        return vector

    return embed
