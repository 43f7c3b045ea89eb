"""Measure a server at several times the load that it sustains, as ratios to its peak in the same run.

    python -m benchmarks.overload [--rounds 3] [--seconds 20] [--factor 5]

First, enough clients to keep it busy, each waiting for its responses (the peak); then `--factor` times as
many requests per second, sent whether or not the server keeps up, while `/health` is asked ten times a
second. The model is the bundled one. The load generator shares the cores with the server.
docs/measurements.md explains each row.
"""

from __future__ import annotations

import argparse
import asyncio

import numpy as np
import uvloop

from benchmarks.attack import Traffic, ask_health
from benchmarks.http_load import make_requests, run_load, run_open_load
from benchmarks.rounds import Row, report
from benchmarks.serve import NUM_PASSAGES, NUM_SHORT, PASSAGES_PER_REQUEST, Server
from benchmarks.texts import bundled_model_folder, load_texts
from infinity_emb.cli.bench.load import Result

MAX_WAIT_S = 8
# Left out of the results: until the queue is full, every request is accepted.
FILL_S = 2 * MAX_WAIT_S


class Bench:
    """Run one server, and send it two kinds of requests."""

    def __init__(self, seconds: float, factor: float) -> None:
        self.server = Server(
            ["--model-id", str(bundled_model_folder()), "--max-queue-wait-s", str(MAX_WAIT_S)]
        )
        self._seconds, self._factor = seconds, factor
        short, passages = load_texts(num_short=NUM_SHORT, num_passages=NUM_PASSAGES)
        self._kinds = {
            "passages": (self._make_requests(passages, PASSAGES_PER_REQUEST), 3),
            "queries": (self._make_requests(short, 1), 32),
        }
        self.rows = {}
        for kind, name in (("passages", "32 passages per request"), ("queries", "one query per request")):
            self.rows[f"{kind}_accepted"] = Row(f"answered at {factor:g}x the peak / peak, {name}", ">= 0.90")
            self.rows[f"{kind}_refused_ms"] = Row("    median time to a 429, ms", "milliseconds")
            self.rows[f"{kind}_refused_p99_ms"] = Row("    99th percentile of it, ms", "milliseconds")
            self.rows[f"{kind}_health_p99_ms"] = Row("    99th percentile of /health, ms", "< 500")
            self.rows[f"{kind}_accepted_s"] = Row("    median time to a response, s", f"about {MAX_WAIT_S}")

    def close(self) -> None:
        """Stop the server."""
        self.server.close()

    def measure(self) -> dict[str, float]:
        """Run one round and return the value of each row."""
        values: dict[str, float] = {}
        for kind, (requests, num_clients) in self._kinds.items():
            values |= {
                f"{kind}_{name}": value for name, value in self._overload(requests, num_clients).items()
            }
        return values

    def _overload(self, requests: list[bytes], num_clients: int) -> dict[str, float]:
        took_s, _ = asyncio.run(run_load(requests, port=self.server.port, num_clients=num_clients))
        peak_per_s = len(requests) / took_s
        duration_s = self._seconds + FILL_S
        responses, health_s = uvloop.run(
            self._load_and_probe(requests, per_s=self._factor * peak_per_s, duration_s=duration_s)
        )
        unexpected = {response.outcome for response in responses} - {"200", "429"}
        if unexpected:
            raise RuntimeError(f"the server answered {unexpected}")
        accepted = [response for response in responses if response.is_ok]
        counted = [response for response in accepted if FILL_S <= response.received_s < duration_s]
        refused_s = _compute_latencies([response for response in responses if response.outcome == "429"])
        return {
            "accepted": len(counted) / self._seconds / peak_per_s,
            "refused_ms": 1000 * float(np.median(refused_s)),
            "refused_p99_ms": 1000 * float(np.percentile(refused_s, 99)),
            "health_p99_ms": 1000 * float(np.percentile(health_s, 99)),
            "accepted_s": float(np.median(_compute_latencies(counted))),
        }

    async def _load_and_probe(
        self, requests: list[bytes], *, per_s: float, duration_s: float
    ) -> tuple[list[Result], list[float]]:
        """Return the results of the load, and the latencies of `/health` meanwhile."""
        port = self.server.port
        probes = Traffic(f"http://127.0.0.1:{port}", "any key", duration_s)
        responses, _ = await asyncio.gather(
            run_open_load(requests, port=port, per_s=per_s, duration_s=duration_s), ask_health(probes)
        )
        if set(probes.statuses) != {200}:
            raise RuntimeError(f"/health was answered with {dict(probes.statuses)}")
        return responses, probes.took_s

    def _make_requests(self, texts: list[str], per_request: int) -> list[bytes]:
        return make_requests(texts, per_request=per_request, port=self.server.port, encoding_format="base64")


def _compute_latencies(responses: list[Result]) -> list[float]:
    return [response.received_s - response.sent_s for response in responses]


def main() -> None:
    """Run the rounds and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--factor", type=float, default=5, help="of the load, to the peak [5]")
    options = parser.parse_args()
    report(Bench(options.seconds, options.factor), options.rounds, about=f"{options.rounds} rounds")


if __name__ == "__main__":
    main()
