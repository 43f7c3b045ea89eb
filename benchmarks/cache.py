"""What the caches of answers cost and save, as ratios: texts per second with a cache to those without one.

    python -m benchmarks.cache [--rounds 5] [--model fake]

Every model is loaded once per arm (no cache, memory, disk) in this process, and the arms take turns. Misses
are texts that nobody has seen; hits are texts of the first round. The fake engine computes nothing, so its
misses show all that a cache does besides. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import tempfile
import time
from collections import Counter
from collections.abc import Sequence

from benchmarks.rounds import Row, report
from benchmarks.texts import load_texts
from infinity_emb import AsyncEmbeddingEngine, EngineArgs
from infinity_emb.config import DEFAULT_MODEL

ARMS = {
    "off": {},
    "memory": {"vector_memory_cache_mb": 512},
    "disk": {"vector_disk_cache": True},
}
MODELS = {
    "fake": ({"model_name_or_path": "debug", "engine": "debugengine"}, 16),
    # Each engine would find a batch size of its own, and the arms would differ in that.
    "bundled": ({"model_name_or_path": DEFAULT_MODEL, "device": "cpu", "max_batch_tokens": 1024}, 1),
}
NUM_TEXTS, NUM_SLICES, NUM_CLIENTS, TEXTS_PER_REQUEST = 768, 6, 4, 32


class Bench:
    """The engines, and the rounds in which they take turns."""

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
            f"{model}_{arm}_{what}": Row(f"{model} model, cache {arm}: {text} / no cache", goal)
            for model in models
            for arm in list(ARMS)[1:]
            for what, text, goal in (
                ("misses", "new texts, 32 a request", ">= 0.97" * (model == "bundled")),
                ("single", "new texts, one at a time", ">= 0.97" * (model == "bundled")),
                ("hits", "known texts, 32 a request", "> 1" * (model == "bundled")),
            )
        }

    def close(self) -> None:
        """Stop the engines."""
        for engine in self._engines.values():
            self._loop.run_until_complete(engine.astop())
        self._loop.close()

    def measure(self) -> dict[str, float]:
        """One round: the value of each row."""
        values = {}
        for model in dict.fromkeys(model for model, _ in self._engines):
            for what, slices in self._workloads(model).items():
                seconds = self._seconds(model, what, slices)
                values |= {f"{model}_{arm}_{what}": seconds["off"] / seconds[arm] for arm in list(ARMS)[1:]}
        return values

    def _workloads(self, model: str) -> dict[str, list[list[str]]]:
        """Texts in slices; those of misses are made new for each arm."""
        texts = self._texts * MODELS[model][1]
        size = len(texts) // NUM_SLICES
        slices = [texts[start : start + size] for start in range(0, len(texts), size)]
        return {"misses": slices, "single": [each[: size // 8] for each in slices], "hits": slices}

    def _seconds(self, model: str, what: str, slices: list[list[str]]) -> Counter[str]:
        """By arm. The arms take turns slice by slice: what else the machine does hits all of them."""
        seconds: Counter[str] = Counter()
        for number, texts in enumerate(slices):
            arms = list(ARMS)
            for arm in arms[number % len(arms) :] + arms[: number % len(arms)]:
                asked = texts if what == "hits" else self._new(texts)
                size, num_clients = (1, 1) if what == "single" else (TEXTS_PER_REQUEST, NUM_CLIENTS)
                seconds[arm] += self._time(self._engines[model, arm], asked, size, num_clients)
        return seconds

    def _new(self, texts: Sequence[str]) -> list[str]:
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
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", choices=list(MODELS), action="append")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["INFINITY_HOME"] = folder
        report(Bench(args.model or list(MODELS)), args.rounds)


if __name__ == "__main__":
    main()
