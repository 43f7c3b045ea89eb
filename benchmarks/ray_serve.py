"""Measure Ray Serve as ratios to the plain server: one replica alone, and behind the router.

    make bench-ray ARGS="--rounds 3"

The bundled model, in one process for each, which the load generator uses in turn over HTTP. All of them share
the cores with it. Needs `infinity-emb[ray]`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.config import HTTPOptions

from benchmarks.http_load import make_request, run_load
from benchmarks.rounds import Row, report
from benchmarks.serve import PASSAGES_PER_REQUEST, Server
from benchmarks.texts import bundled_model_folder, load_texts
from infinity_emb.ray_serve import build

NUM_SHORT, NUM_PASSAGES = 512, 128
OBJECT_STORE_BYTES = 100 * 2**20
# Kind of requests → texts in each, and clients that wait for their responses.
KINDS = {"queries": (1, 16), "passages": (PASSAGES_PER_REQUEST, 3)}
SUBJECTS = {"direct": "one replica", "router": "one replica behind the router"}


class Bench:
    """Run the plain server, and Serve with two applications of one replica."""

    def __init__(self) -> None:
        model = str(bundled_model_folder())
        self.server = Server(["--model-id", model])
        self._serve_port = _start_serve(model)
        short, passages = load_texts(num_short=NUM_SHORT, num_passages=NUM_PASSAGES)
        self._texts = {"queries": short, "passages": passages}
        self.rows = {
            f"{subject}_{kind}": Row(f"{name} / plain server, {kind}, requests/s", "-")
            for kind in KINDS
            for subject, name in SUBJECTS.items()
        }

    def close(self) -> None:
        """Stop everything."""
        self.server.close()
        serve.shutdown()
        ray.shutdown()

    def measure(self) -> dict[str, float]:
        """Run one round and return the value of each row."""
        values: dict[str, float] = {}
        for kind in KINDS:
            plain_s = self._load(kind, "", self.server.port)
            for subject in SUBJECTS:
                values[f"{subject}_{kind}"] = plain_s / self._load(kind, f"/{subject}", self._serve_port)
        return values

    def _load(self, kind: str, prefix: str, port: int) -> float:
        """Return the seconds for all requests of a kind."""
        size, num_clients = KINDS[kind]
        texts = self._texts[kind]
        requests = [
            make_request(
                f"{prefix}/embeddings",
                {"input": texts[start : start + size], "encoding_format": "base64"},
                port=port,
            )
            for start in range(0, len(texts), size)
        ]
        seconds, _ = asyncio.run(run_load(requests, port=port, num_clients=num_clients))
        return seconds


def _start_serve(model: str) -> int:
    """Start both applications; return the port."""
    os.environ.update(
        RAY_USAGE_STATS_ENABLED="0",
        RAY_worker_niceness="0",  # as the plain server and the load generator; Ray's default is 15
        HOME=tempfile.mkdtemp(),  # Ray keeps a token there
        PYTHONPATH=str(Path(__file__).parents[1]),
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    options: dict[str, Any] = {"num_cpus": 4, "object_store_memory": OBJECT_STORE_BYTES}
    ray.init(**options, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
    for subject in SUBJECTS:
        application = build({"model_id": model, "router": subject == "router"})
        serve.run(application, name=subject, route_prefix=f"/{subject}")
    return port


def main() -> None:
    """Run the rounds and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    report(Bench(), options.rounds, about=f"{options.rounds} rounds, ray {ray.__version__}")


if __name__ == "__main__":
    main()
