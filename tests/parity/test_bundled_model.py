"""The bundled real model against `SentenceTransformer.encode`, on real texts, however they are sent."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks.texts import bundled_model_folder, load_texts
from infinity_emb import AsyncEmbeddingEngine, EngineArgs

pytestmark = pytest.mark.model

Vectors = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """160 real texts and a few that are awkward."""
    short, passages = load_texts(num_short=120, num_passages=40)
    awkward = [
        "",
        " ",
        "\n",
        "a",
        "ﬁ Ⅸ",
        "日本語のテキスト",
        "🙂 emoji 🏳️‍🌈",
        "word " * 2000,
        "x" * 5000,
        "naïve café",
    ]
    return [text for pair in zip(short, passages, strict=False) for text in pair] + short[40:] + awkward


@pytest.fixture(scope="module")
def expected(texts: list[str]) -> Vectors:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(bundled_model_folder()), device="cpu")
    return model.encode(texts, show_progress_bar=False)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def engine(loop: asyncio.AbstractEventLoop) -> Iterator[AsyncEmbeddingEngine]:
    engine = AsyncEmbeddingEngine.from_args(EngineArgs())
    loop.run_until_complete(engine.astart())
    yield engine
    loop.run_until_complete(engine.astop())


def assert_equal_vectors(vectors: list[npt.NDArray[np.float32]], expected: Vectors) -> None:
    actual = np.array(vectors)
    assert actual.dtype == np.float32
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= 2e-5
    assert (actual * expected).sum(axis=1).min() >= 0.99999


def test_default_model_runs_packed(engine: AsyncEmbeddingEngine) -> None:
    assert engine.engine_args.served_model_name == "sentence-transformers/all-MiniLM-L6-v2"
    assert engine.info.attention == "packed"


def test_one_list_equals_sentence_transformers(
    engine: AsyncEmbeddingEngine, loop: asyncio.AbstractEventLoop, texts: list[str], expected: Vectors
) -> None:
    vectors, _ = loop.run_until_complete(engine.embed(texts))
    assert_equal_vectors(vectors, expected)


def test_texts_sent_alone_equal_sentence_transformers(
    engine: AsyncEmbeddingEngine, loop: asyncio.AbstractEventLoop, texts: list[str], expected: Vectors
) -> None:
    async def one_after_the_other() -> list[npt.NDArray[np.float32]]:
        return [(await engine.embed([text]))[0][0] for text in texts]

    assert_equal_vectors(loop.run_until_complete(one_after_the_other()), expected)


def test_32_clients_at_once_equal_sentence_transformers(
    engine: AsyncEmbeddingEngine, loop: asyncio.AbstractEventLoop, texts: list[str], expected: Vectors
) -> None:
    vectors: dict[int, npt.NDArray[np.float32]] = {}

    async def client(number: int) -> None:
        for position in range(number, len(texts), 32):
            vectors[position] = (await engine.embed([texts[position]]))[0][0]

    async def all_clients() -> None:
        await asyncio.gather(*(client(number) for number in range(32)))

    loop.run_until_complete(all_clients())
    assert_equal_vectors([vectors[position] for position in range(len(texts))], expected)


def test_a_text_has_one_vector_whatever_shares_its_batch(
    engine: AsyncEmbeddingEngine, loop: asyncio.AbstractEventLoop, texts: list[str]
) -> None:
    text = texts[3]
    alone = loop.run_until_complete(engine.embed([text]))[0][0]
    for company in (texts[:1], texts[4:20], texts[60:150], texts[-10:]):
        shared = loop.run_until_complete(engine.embed([*company, text]))[0][-1]
        assert np.abs(shared - alone).max() <= 1e-6


def test_usage_counts_the_tokens_that_were_embedded(
    engine: AsyncEmbeddingEngine, loop: asyncio.AbstractEventLoop
) -> None:
    """[CLS] hello world [SEP] is 4; a text over the limit counts as the 256 tokens that are kept."""
    assert loop.run_until_complete(engine.embed(["hello world"]))[1] == 4
    assert loop.run_until_complete(engine.embed(["hello world", "hello world"]))[1] == 8
    assert loop.run_until_complete(engine.embed(["word " * 5000]))[1] == 256


def test_replicas_on_the_cpu_answer_alike(
    loop: asyncio.AbstractEventLoop, texts: list[str], expected: Vectors
) -> None:
    engine = AsyncEmbeddingEngine.from_args(EngineArgs(device="cpu", device_id=(0, 1), model_warmup=False))

    async def run() -> list[npt.NDArray[np.float32]]:
        async with engine:
            requests = [engine.embed(texts[start : start + 40]) for start in range(0, 120, 40)]
            return [vector for vectors, _ in await asyncio.gather(*requests) for vector in vectors]

    assert_equal_vectors(loop.run_until_complete(run()), expected[:120])


def test_dimensions_are_cut_and_scaled_back_to_unit_length(
    engine: AsyncEmbeddingEngine, loop: asyncio.AbstractEventLoop, texts: list[str], expected: Vectors
) -> None:
    vectors, _ = loop.run_until_complete(engine.embed(texts[:20], matryoshka_dim=64))
    short = expected[:20, :64] / np.linalg.norm(expected[:20, :64], axis=1, keepdims=True)
    assert np.abs(np.array(vectors) - short).max() <= 2e-5
