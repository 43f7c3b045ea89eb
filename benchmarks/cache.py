"""Measure what the caches cost and save: ratios of texts per second with a cache to without.

    python -m benchmarks.cache [--rounds 5] [--model fake]

Every model is loaded once per arm (no cache, memory, disk) in this process, and the arms take turns. Misses
are new texts; hits are texts of the first round. The fake engine computes nothing, so its misses show the
whole cost of a cache. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.rounds import Row, report
from benchmarks.texts import load_texts
from infinity_emb import AsyncEmbeddingEngine, EngineArgs
from infinity_emb.config.model_options import DEFAULT_MODEL

ARMS: dict[str, dict[str, Any]] = {
    "off": {},
    "memory": {"vector_memory_cache_mb": 512},
    "disk": {"vector_disk_cache": True},
}
# Model → options, and how often its texts are repeated.
MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "fake": ({"model_name_or_path": "debug", "engine": "debugengine"}, 16),
    # Fixed, because each engine would measure its own batch size, and the arms would differ by it.
    "bundled": ({"model_name_or_path": DEFAULT_MODEL, "device": "cpu", "max_batch_tokens": 1024}, 1),
}
NUM_TEXTS, NUM_SLICES, NUM_CLIENTS, TEXTS_PER_REQUEST = 768, 6, 4, 32


class Bench:
    """Hold the engines and run the rounds."""

    def __init__(self, models: Sequence[str]) -> None:
        self._loop = asyncio.new_event_loop()
        self._texts, _ = load_texts(num_short=NUM_TEXTS, num_passages=1)
        self._numbers = itertools.count()
        self._engines = {
            (model, arm): AsyncEmbeddingEngine.from_args(EngineArgs(**MODELS[model][0], **cache))
            for model in models
            for arm, cache in ARMS.items()
        }
        for engine in self._engines.values():
            self._loop.run_until_complete(engine.astart())
        self.rows = {
            f"{model}_{arm}_{workload}": Row(f"{model} model, cache {arm}: {text} / no cache", goal)
            for model in models
            for arm in list(ARMS)[1:]
            for workload, text, goal in (
                ("misses", "new texts, 32 per request", ">= 0.97" * (model == "bundled")),
                ("single", "new texts, one at a time", ">= 0.97" * (model == "bundled")),
                ("hits", "known texts, 32 per request", "> 1" * (model == "bundled")),
            )
        }

    def close(self) -> None:
        """Stop the engines."""
        for engine in self._engines.values():
            self._loop.run_until_complete(engine.astop())
        self._loop.close()

    def measure(self) -> dict[str, float]:
        """Run one round and return the value of each row."""
        values: dict[str, float] = {}
        for model in dict.fromkeys(model for model, _ in self._engines):
            for workload, slices in self._make_workloads(model).items():
                seconds = self._time_arms(model, workload, slices)
                values |= {
                    f"{model}_{arm}_{workload}": seconds["off"] / seconds[arm] for arm in list(ARMS)[1:]
                }
        return values

    def _make_workloads(self, model: str) -> dict[str, list[list[str]]]:
        """Return workload → slices of texts; `_time_arms` makes those of misses unique for each arm."""
        texts = self._texts * MODELS[model][1]
        size = len(texts) // NUM_SLICES
        slices = [texts[start : start + size] for start in range(0, len(texts), size)]
        return {"misses": slices, "single": [texts[: size // 8] for texts in slices], "hits": slices}

    def _time_arms(self, model: str, workload: str, slices: list[list[str]]) -> dict[str, float]:
        """Return the seconds of each arm. They take turns by slices, so that a slow moment affects all."""
        seconds = dict.fromkeys(ARMS, 0.0)
        for index, texts in enumerate(slices):
            arms = list(ARMS)
            for arm in arms[index % len(arms) :] + arms[: index % len(arms)]:
                inputs = texts if workload == "hits" else self._make_unique(texts)
                size, num_clients = (1, 1) if workload == "single" else (TEXTS_PER_REQUEST, NUM_CLIENTS)
                seconds[arm] += self._time(self._engines[model, arm], inputs, size, num_clients)
        return seconds

    def _make_unique(self, texts: Sequence[str]) -> list[str]:
        return [f"{text} {number}" for text, number in zip(texts, self._numbers, strict=False)]

    def _time(self, engine: AsyncEmbeddingEngine, texts: list[str], size: int, num_clients: int) -> float:
        requests = iter([texts[start : start + size] for start in range(0, len(texts), size)])

        async def client() -> None:
            for request in requests:
                await engine.embed(request)

        async def clients() -> None:
            await asyncio.gather(*(client() for _ in range(num_clients)))

        started = time.perf_counter()
        self._loop.run_until_complete(clients())
        return time.perf_counter() - started


def main() -> None:
    """Run the rounds and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", choices=list(MODELS), action="append")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["INFINITY_HOME"] = folder
        report(Bench(args.model or list(MODELS)), args.rounds)


if __name__ == "__main__":
    main()
