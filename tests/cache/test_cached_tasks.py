"""Every task through an engine with a cache: the same answers as without one, and nothing computed twice."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infinity_emb.config import EngineArgs
from infinity_emb.embedding import EmbedOptions
from infinity_emb.engine import AsyncEmbeddingEngine
from infinity_emb.errors import BackendFailed, InputTooLong
from infinity_emb.primitives import EmbeddingDtype

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


def engine_of(model: str, **options: Any) -> AsyncEmbeddingEngine:
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
    async with engine_of(model, **options) as engine:
        return [plain(await ask(engine)) for _ in range(num_times)], engine.stats.num_items


@pytest.mark.parametrize("cache", CACHES, ids=["memory", "disk"])
@pytest.mark.parametrize("task", TASKS)
def test_answers_are_the_same_with_a_cache_and_computed_once(task: str, cache: dict[str, Any]) -> None:
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


def test_what_is_refused_is_refused_every_time_and_what_is_cut_is_another_answer() -> None:
    async def main() -> None:
        async with engine_of("debug", vector_memory_cache_mb=8) as engine:
            for limit, length in ((None, 6), (3, 3), (None, 6)):
                answer = await engine.encode(["abcdef"], EmbedOptions(max_tokens=limit))
                assert answer.dense is not None
                assert answer.dense[0][0] == length
            for _ in range(2):
                with pytest.raises(InputTooLong, match="input 1 has 6 tokens"):
                    await engine.encode(["abc", "abcdef"], EmbedOptions(max_tokens=3, truncation="off"))

    asyncio.run(main())


def test_a_failure_is_not_kept() -> None:
    async def main() -> None:
        async with engine_of("debug?fail_on=poison", vector_memory_cache_mb=8) as engine:
            for _ in range(2):
                with pytest.raises(BackendFailed):
                    await engine.embed(["fine", "poison"])
            vectors, _ = await engine.embed(["fine"])
            assert vectors[0][0] == 4

    asyncio.run(main())


def test_passages_that_are_read_as_one_are_always_computed() -> None:
    async def main() -> None:
        async with engine_of("debug?kind=embedder", vector_memory_cache_mb=8) as engine:
            await engine.encode_passages(["one", "two"])
            await engine.encode_passages(["one", "two"])
            assert engine.stats.num_items == 2
            assert engine.cache_stats.num_misses == 0

    asyncio.run(main())


def test_without_a_cache_nothing_is_shared_or_counted(home: Path) -> None:
    async def main() -> None:
        async with engine_of("debug?delay_s=0.05") as engine:
            await asyncio.gather(*(engine.embed(["same"]) for _ in range(3)))
            assert engine.stats.num_items == 3
            assert not any(astuple(engine.cache_stats))

    asyncio.run(main())
    assert not list(home.iterdir())


def test_two_models_share_a_file_and_not_their_answers() -> None:
    async def main() -> None:
        for model in ("debug", "debug?kind=embedder"):
            async with engine_of(model, vector_disk_cache=True) as engine:
                await engine.embed(["text"])
                assert engine.cache_stats.num_misses == 1

    asyncio.run(main())


@pytest.mark.model
def test_vectors_of_a_real_model_come_back_bit_by_bit() -> None:
    args = EngineArgs(device="cpu", model_warmup=False, vector_disk_cache=True)
    texts = ["What is a pangolin?", "", "ein längerer Satz, der etwas sagt"]

    async def embed(engine: AsyncEmbeddingEngine) -> list[bytes]:
        async with engine:
            return [vector.tobytes() for vector in (await engine.embed(texts))[0]]

    engine = AsyncEmbeddingEngine.from_args(args)
    computed = asyncio.run(embed(engine))
    kept = asyncio.run(embed(engine))
    assert kept == computed
    assert engine.cache_stats.num_disk_hits == len(texts)
