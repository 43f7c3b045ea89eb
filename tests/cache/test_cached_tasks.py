"""Run every task with a cache: the results are those without one, and nothing is computed twice."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.engine.results import EmbedOptions
from infinity_emb.errors import BackendFailed, InputTooLong
from infinity_emb.types import EmbeddingDtype

Ask = Callable[[AsyncEmbeddingEngine], Awaitable[Any]]
TEXTS = ["one", "three", "one", "twenty-two"]
CACHES = [{"vector_memory_cache_mb": 8}, {"vector_disk_cache": True}]


def encode(**options: Any) -> Ask:
    return lambda engine: engine.encode(TEXTS, EmbedOptions(**options))


TASKS: dict[str, tuple[str, Ask]] = {
    "embed": ("embedder", lambda engine: engine.embed(TEXTS)),
    "dimensions": ("embedder", encode(dimensions=5)),
    "binary": ("embedder", encode(embedding_dtype=EmbeddingDtype.binary)),
    "all outputs": ("embedder", encode(outputs=("multivector", "dense", "sparse"))),
    "tokens": ("embedder", encode(outputs=("tokens",))),
    "chunking": ("embedder", encode(chunking=True, max_tokens=4)),
    "rerank": ("reranker", lambda engine: engine.rerank(query="q", docs=TEXTS)),
    "raw scores": ("reranker", lambda engine: engine.rerank(query="q", docs=TEXTS, raw_scores=True)),
    "rerank by vectors": ("embedder", lambda engine: engine.rerank(query="q", docs=TEXTS)),
    "maxsim": ("multivector", lambda engine: engine.rerank(query="q", docs=TEXTS)),
    "classify": ("classifier", lambda engine: engine.classify(sentences=[*TEXTS, ("a", "b")])),
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INFINITY_HOME", str(tmp_path))
    return tmp_path


def make_engine(model: str, **options: Any) -> AsyncEmbeddingEngine:
    args = EngineArgs(model_name_or_path=model, engine="debugengine", **options)
    return AsyncEmbeddingEngine.from_args(args)


def plain(answer: Any) -> Any:
    """Lists and numbers, and the dtypes of arrays."""
    if isinstance(answer, np.ndarray):
        return [str(answer.dtype), answer.tolist()]
    if isinstance(answer, list | tuple):
        return [plain(each) for each in answer]
    if hasattr(answer, "__dataclass_fields__"):
        return plain([getattr(answer, name) for name in answer.__dataclass_fields__])
    return answer


async def answers(model: str, ask: Ask, num_times: int, **options: Any) -> tuple[list[Any], int]:
    """And how many items reached the device."""
    async with make_engine(model, **options) as engine:
        return [plain(await ask(engine)) for _ in range(num_times)], engine.status().worker.num_items


@pytest.mark.parametrize("cache", CACHES, ids=["memory", "disk"])
@pytest.mark.parametrize("task", TASKS)
def test_results_are_the_same_with_a_cache_and_computed_once(task: str, cache: dict[str, Any]) -> None:
    kind, ask = TASKS[task]
    model = f"debug?kind={kind}"

    async def main() -> None:
        (expected,), num_items = await answers(model, ask, 1)
        for restart in range(2):
            cached, num_computed = await answers(model, ask, 3, **cache)
            assert cached == [expected] * 3
            if task == "maxsim":  # documents are scored for the rows of a query: only the query is kept
                continue
            is_there = restart == 1 and "vector_disk_cache" in cache
            assert num_computed == (0 if is_there else num_items)

    asyncio.run(main())


def test_refused_texts_are_refused_again_and_truncated_ones_are_cached_separately() -> None:
    async def main() -> None:
        async with make_engine("debug", vector_memory_cache_mb=8) as engine:
            for limit, length in ((None, 6), (3, 3), (None, 6)):
                answer = await engine.encode(["abcdef"], EmbedOptions(max_tokens=limit))
                assert answer.dense is not None
                assert answer.dense[0][0] == length
            for _ in range(2):
                with pytest.raises(InputTooLong, match="input 1 has 6 tokens"):
                    await engine.encode(["abc", "abcdef"], EmbedOptions(max_tokens=3, truncation="off"))

    asyncio.run(main())


def test_a_failure_is_not_cached() -> None:
    async def main() -> None:
        async with make_engine("debug?fail_on=poison", vector_memory_cache_mb=8) as engine:
            for _ in range(2):
                with pytest.raises(BackendFailed):
                    await engine.embed(["fine", "poison"])
            vectors, _ = await engine.embed(["fine"])
            assert vectors[0][0] == 4

    asyncio.run(main())


def test_late_chunking_is_not_cached() -> None:
    async def main() -> None:
        async with make_engine("debug?kind=embedder", vector_memory_cache_mb=8) as engine:
            await engine.encode_passages(["one", "two"])
            await engine.encode_passages(["one", "two"])
            assert engine.status().worker.num_items == 2
            assert engine.status().cache.num_misses == 0

    asyncio.run(main())


def test_without_a_cache_nothing_is_counted_or_written(home: Path) -> None:
    async def main() -> None:
        async with make_engine("debug?delay_s=0.05") as engine:
            await asyncio.gather(*(engine.embed(["same"]) for _ in range(3)))
            assert engine.status().worker.num_items == 3
            assert not any(astuple(engine.status().cache))

    asyncio.run(main())
    assert not list(home.iterdir())


def test_two_models_share_a_file_but_not_their_results() -> None:
    async def main() -> None:
        for model in ("debug", "debug?kind=embedder"):
            async with make_engine(model, vector_disk_cache=True) as engine:
                await engine.embed(["text"])
                assert engine.status().cache.num_misses == 1

    asyncio.run(main())


@pytest.mark.model
def test_cached_vectors_of_a_real_model_are_identical() -> None:
    args = EngineArgs(device="cpu", model_warmup=False, vector_disk_cache=True)
    texts = ["What is a pangolin?", "", "ein längerer Satz, der etwas sagt"]

    async def embed(engine: AsyncEmbeddingEngine) -> list[bytes]:
        async with engine:
            return [vector.tobytes() for vector in (await engine.embed(texts))[0]]

    engine = AsyncEmbeddingEngine.from_args(args)
    computed = asyncio.run(embed(engine))
    kept = asyncio.run(embed(engine))
    assert kept == computed
    assert engine.status().cache.num_disk_hits == len(texts)
