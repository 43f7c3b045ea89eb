"""What is measured, each in a process of its own: sentence-transformers, our engine, our server.

Run as `python -m benchmarks.peers NAME`, it answers one JSON line for each JSON line it reads; so nobody's
threads, allocator or imports disturb anybody else, and turns can alternate.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import psutil


class Subject(Protocol):
    """Something that embeds."""

    def embed(self, texts: list[str]) -> np.ndarray: ...


class SentenceTransformers:
    """The peer, as its documentation uses it."""

    def __init__(self, model: str, device: str = "cpu") -> None:
        from sentence_transformers import SentenceTransformer

        # torch calls nothing tensorrt; that is onnxruntime's name for a way to use the same device.
        self._model = SentenceTransformer(model, device={"tensorrt": "cuda"}.get(device, device))
        self._model.encode(["warm up"], show_progress_bar=False)

    def embed(self, texts: list[str]) -> np.ndarray:
        return self._model.encode(texts, batch_size=32, show_progress_bar=False)


class CrossEncoderPeer:
    """The peer for pairs, as its documentation uses it."""

    def __init__(self, model: str) -> None:
        from sentence_transformers import CrossEncoder

        self._model = CrossEncoder(model, device="cpu")
        self._model.predict([("warm", "up")], show_progress_bar=False)

    def rerank(self, queries: list[str], documents: list[str]) -> None:
        for query in queries:
            pairs = [(query, document) for document in documents]
            self._model.predict(pairs, batch_size=32, show_progress_bar=False)


class BareEngine:
    """Our engine without HTTP."""

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
        """One request after the other."""
        for query in queries:
            self._loop.run_until_complete(self._engine.rerank(query=query, docs=documents))

    def embed_each(self, texts: list[str], num_clients: int) -> None:
        """One request per text from so many coroutines, as a server's clients send them."""
        todo = iter(texts)

        async def client() -> None:
            for text in todo:
                await self._engine.embed([text])

        async def all_clients() -> None:
            await asyncio.gather(*(client() for _ in range(num_clients)))

        self._loop.run_until_complete(all_clients())

    def forward_ms(self, text: str, num_runs: int) -> list[float]:
        """One text through the backend alone: no queue, no event loop, no tokenizer."""
        from infinity_emb.backends.base import InputOptions

        model = self._engine._model
        batch = model.prepare([text], InputOptions())
        backend = model.replicas[0]
        return [_milliseconds(lambda: backend.launch(batch).collect()) for _ in range(num_runs)]


def _milliseconds(call: Callable[[], Any]) -> float:
    started_s = time.perf_counter()
    call()
    return (time.perf_counter() - started_s) * 1000


class Peer:
    """The other end of such a process."""

    def __init__(self, name: str, model: str, **options: Any) -> None:
        started_s = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.peers", name, model, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.ready = self._read()
        self.ready_s = time.perf_counter() - started_s

    def ask(self, action: str, **arguments: Any) -> dict[str, Any]:
        """Have it done and return what came of it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"action": action, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the measured process ended with code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def resident_mib(pid: int | None = None) -> float:
    """Resident memory of a process in MiB."""
    return psutil.Process(pid).memory_info().rss / 2**20


def main() -> None:
    """Serve one subject over standard input and output."""
    name, model, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not end up among the answers
    subjects = {
        "sentence-transformers": SentenceTransformers,
        "cross-encoder": CrossEncoderPeer,
        "engine": BareEngine,
    }
    subject: Any = subjects[name](model, **options)
    told = {name: getattr(subject, name, None) for name in ("batch_tokens", "dtype")}
    _answer(answers, {"resident_mib": resident_mib(), **told})
    for line in sys.stdin:
        request = json.loads(line)
        _answer(answers, _act(subject, request))


def _act(subject: Any, request: dict[str, Any]) -> dict[str, Any]:
    if request["action"] == "forward":
        return {"ms": subject.forward_ms(request["text"], request["num_runs"])}
    if request["action"] == "memory":
        return {"resident_mib": resident_mib()}
    started_s = time.perf_counter()
    if request["action"] == "rerank":
        subject.rerank(request["queries"], request["documents"])
    elif request["action"] == "embed_each":
        subject.embed_each(request["texts"], request["num_clients"])
    else:
        subject.embed(request["texts"])
    return {"s": time.perf_counter() - started_s}


def _answer(stream: Any, answer: dict[str, Any]) -> None:
    stream.write(json.dumps(answer) + "\n")
    stream.flush()


if __name__ == "__main__":
    main()
