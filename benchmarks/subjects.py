"""Run each subject of a comparison in its own process: sentence-transformers, a cross-encoder, our engine.

`python -m benchmarks.subjects NAME MODEL OPTIONS` answers each line of JSON with one. Separate processes keep
threads, allocators and imports apart, and let the subjects take turns.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol, TextIO

import numpy as np
import psutil


class Subject(Protocol):
    """Declare what embeds texts."""

    def embed(self, texts: list[str]) -> np.ndarray: ...


class SentenceTransformers:
    """Embed with sentence-transformers, as its documentation does."""

    def __init__(self, model: str, device: str = "cpu") -> None:
        from sentence_transformers import SentenceTransformer

        # tensorrt is onnxruntime's name for another way to use the CUDA device.
        self._model = SentenceTransformer(model, device={"tensorrt": "cuda"}.get(device, device))
        self._model.encode(["warm up"], show_progress_bar=False)

    def embed(self, texts: list[str]) -> np.ndarray:
        return self._model.encode(texts, batch_size=32, show_progress_bar=False)


class CrossEncoderPeer:
    """Score pairs with sentence-transformers, as its documentation does."""

    def __init__(self, model: str) -> None:
        from sentence_transformers import CrossEncoder

        self._model = CrossEncoder(model, device="cpu")
        self._model.predict([("warm", "up")], show_progress_bar=False)

    def rerank(self, queries: list[str], documents: list[str]) -> None:
        for query in queries:
            pairs = [(query, document) for document in documents]
            self._model.predict(pairs, batch_size=32, show_progress_bar=False)


class BareEngine:
    """Run our engine without HTTP."""

    def __init__(self, model: str, **options: Any) -> None:
        from infinity_emb import AsyncEmbeddingEngine, EngineArgs

        self._engine = AsyncEmbeddingEngine.from_args(EngineArgs(model_name_or_path=model, **options))
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self._engine.astart())
        self.batch_tokens = self._engine.max_batch_tokens
        self.dtype = self._engine.info.dtype

    def embed(self, texts: list[str]) -> np.ndarray:
        return np.array(self._loop.run_until_complete(self._engine.embed(texts))[0])

    def rerank(self, queries: list[str], documents: list[str]) -> None:
        """Send one request per query, one after another."""
        for query in queries:
            self._loop.run_until_complete(self._engine.rerank(query=query, docs=documents))

    def embed_each(self, texts: list[str], num_clients: int) -> None:
        """Send one request per text from `num_clients` coroutines, like the clients of a server."""
        remaining = iter(texts)

        async def client() -> None:
            for text in remaining:
                await self._engine.embed([text])

        async def all_clients() -> None:
            await asyncio.gather(*(client() for _ in range(num_clients)))

        self._loop.run_until_complete(all_clients())

    def time_forward_ms(self, text: str, num_runs: int) -> list[float]:
        """Time one text in the backend alone: no queue, no event loop, no tokenizer."""
        from infinity_emb.items import InputOptions, number_inputs

        model = self._engine.slot.model
        assert model is not None
        batch = model.encode(number_inputs([text]), InputOptions())
        backend = model.replicas[0]
        return [_time_ms(lambda: backend.launch(batch).result()) for _ in range(num_runs)]


def _time_ms(call: Callable[[], Any]) -> float:
    started_s = time.perf_counter()
    call()
    return (time.perf_counter() - started_s) * 1000


class Peer:
    """Start such a process and talk to it."""

    def __init__(self, name: str, model: str, **options: Any) -> None:
        started_s = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.subjects", name, model, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.ready = self._read()
        self.ready_s = time.perf_counter() - started_s

    def ask(self, action: str, **arguments: Any) -> dict[str, Any]:
        """Send one action and return the result."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"action": action, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """Stop the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the measured process ended with code {self._process.wait()}")
        result: dict[str, Any] = json.loads(line)
        return result


def measure_resident_mib(pid: int | None = None) -> float:
    """Return the resident memory of a process in MiB."""
    return float(psutil.Process(pid).memory_info().rss / 2**20)


def main() -> None:
    """Run one subject, controlled over standard input and output."""
    name, model, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not end up among the results
    subjects = {
        "sentence-transformers": SentenceTransformers,
        "cross-encoder": CrossEncoderPeer,
        "engine": BareEngine,
    }
    subject: Any = subjects[name](model, **options)
    ready = {name: getattr(subject, name, None) for name in ("batch_tokens", "dtype")}
    _write_line(results, {"resident_mib": measure_resident_mib(), **ready})
    for line in sys.stdin:
        _write_line(results, _act(subject, json.loads(line)))


def _act(subject: Any, request: dict[str, Any]) -> dict[str, Any]:
    if request["action"] == "forward":
        return {"ms": subject.time_forward_ms(request["text"], request["num_runs"])}
    if request["action"] == "memory":
        return {"resident_mib": measure_resident_mib()}
    started_s = time.perf_counter()
    if request["action"] == "rerank":
        subject.rerank(request["queries"], request["documents"])
    elif request["action"] == "embed_each":
        subject.embed_each(request["texts"], request["num_clients"])
    else:
        subject.embed(request["texts"])
    return {"s": time.perf_counter() - started_s}


def _write_line(stream: TextIO, result: dict[str, Any]) -> None:
    stream.write(json.dumps(result) + "\n")
    stream.flush()


if __name__ == "__main__":
    main()
