"""Measure what another vendor's API costs over ours: ratios of request times for the same 32 passages.

    python -m benchmarks.dialects [--rounds 7]

One server, one client; the routes take turns within each round. Our own route returns JSON numbers, as the
others do. docs/measurements.md explains each row.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from benchmarks.http_load import make_request, run_load
from benchmarks.rounds import Row, report
from benchmarks.serve import NUM_PASSAGES, PASSAGES_PER_REQUEST, Server
from benchmarks.texts import bundled_model_folder, load_texts

QUERY = "Where is Munich?"
GOAL = "<= 1.05"


def build_embedding_bodies(passages: list[str]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return name → path and body; the first is our own route."""
    return {
        "/embeddings": ("/embeddings", {"input": passages, "encoding_format": "float"}),
        "TEI /embed": ("/embed", {"inputs": passages}),
        "Cohere /v2/embed": ("/v2/embed", {"texts": passages, "embedding_types": ["float"]}),
        "Ollama /api/embed": ("/api/embed", {"model": "bench", "input": passages}),
        "vLLM /pooling": ("/pooling", {"input": passages, "encoding_format": "float"}),
    }


def build_ranking_bodies(passages: list[str]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return name → path and body; the first is our own route."""
    return {
        "/rerank": ("/rerank", {"query": QUERY, "documents": passages}),
        "TEI /rerank": ("/rerank", {"query": QUERY, "texts": passages}),
        "Cohere /v2/rerank": ("/v2/rerank", {"model": "bench", "query": QUERY, "documents": passages}),
        "vLLM /score": ("/score", {"text_1": QUERY, "text_2": passages}),
        "NIM /ranking": (
            "/v1/ranking",
            {"query": {"text": QUERY}, "passages": [{"text": text} for text in passages]},
        ),
    }


class Bench:
    """Run one server, and send it the same passages in every dialect."""

    def __init__(self) -> None:
        self.server = Server(["--model-id", str(bundled_model_folder()), "--served-model-name", "bench"])
        _, passages = load_texts(num_short=1, num_passages=NUM_PASSAGES)
        chunks = [
            passages[start : start + PASSAGES_PER_REQUEST]
            for start in range(0, len(passages), PASSAGES_PER_REQUEST)
        ]
        self._groups = [
            [
                {
                    name: make_request(path, body, port=self.server.port)
                    for name, (path, body) in build_bodies(chunk).items()
                }
                for chunk in chunks
            ]
            for build_bodies in (build_embedding_bodies, build_ranking_bodies)
        ]
        self.rows = {
            name: Row(f"{name} / {next(iter(requests[0]))}", GOAL)
            for requests in self._groups
            for name in list(requests[0])[1:]
        }

    def close(self) -> None:
        """Stop the server."""
        self.server.close()

    def measure(self) -> dict[str, float]:
        """Run one round; return the time of each dialect over that of our own route, for all passages."""
        values: dict[str, float] = {}
        for requests in self._groups:
            seconds = dict.fromkeys(requests[0], 0.0)
            for index, by_name in enumerate(requests):
                names = list(by_name)
                for name in names[index % len(names) :] + names[: index % len(names)]:
                    took_s, _ = asyncio.run(run_load([by_name[name]], port=self.server.port, num_clients=1))
                    seconds[name] += took_s
            own, *others = seconds
            values |= {name: seconds[name] / seconds[own] for name in others}
        return values


def main() -> None:
    """Run the rounds and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    report(Bench(), options.rounds, about=f"{options.rounds} rounds of {NUM_PASSAGES} passages")


if __name__ == "__main__":
    main()
