"""Convert vectors to the dtype of the request or of the model."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infinity_emb.engine.results import EmbedOptions
from infinity_emb.errors import (
    BadInput,
    StartupError,
)
from infinity_emb.types import EmbeddingDtype
from tests.support.event_loop import run
from tests.support.fake_engines import call, fake_engine, read_vector_lengths


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where calibration rows are kept."""
    monkeypatch.setenv("INFINITY_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("dtype", ["float16", "binary", "ubinary"])
def test_the_dtype_is_that_of_the_request_or_else_of_the_model(dtype: str) -> None:
    expected = {
        "float16": ([0.0] * 13, [4.0] * 13),
        "binary": ([-128, -128], [127, 120]),
        "ubinary": ([0, 0], [255, 248]),
    }[dtype]

    async def main() -> None:
        options = EmbedOptions(embedding_dtype=EmbeddingDtype(dtype))
        async with fake_engine(embedding_dtype=dtype) as served, fake_engine() as asked:
            for answer in (await served.encode(["", "four"]), await asked.encode(["", "four"], options)):
                assert [vector.tolist() for vector in answer.dense or ()] == list(expected)
            plain = EmbedOptions(embedding_dtype=EmbeddingDtype.float32)
            for engine in (served, asked):
                vectors = (await engine.encode(["four"], plain)).dense or ()
                assert [vector.dtype for vector in vectors] == [np.float32]
            assert (await served.embed(["four"]))[0][0].tolist() == expected[1]

    run(main())


@pytest.mark.parametrize(("dtype", "shift"), [("uint8", 0), ("int8", -128)])
@pytest.mark.parametrize("is_served_so", [True, False])
def test_int8_ranges_come_from_the_calibration_texts(
    dtype: str, shift: int, is_served_so: bool, home: Path
) -> None:
    """Texts of 10 to 265 characters make steps of one character."""
    texts = home / "texts.txt"
    texts.write_text("\n".join("x" * length for length in (265, 10, 99)))
    given = {"embedding_dtype": dtype} if is_served_so else {}

    async def main() -> None:
        async with fake_engine(calibration_file=str(texts), **given) as engine:
            num_calibrated = engine.status().worker.num_items
            answer = await engine.encode(
                ["x" * length for length in (0, 10, 11, 100, 265, 999)],
                EmbedOptions(embedding_dtype=None if is_served_so else EmbeddingDtype(dtype)),
            )
            assert read_vector_lengths(answer.dense or ()) == [
                step + shift for step in (0, 0, 1, 90, 255, 255)
            ]
            assert {vector.dtype for vector in answer.dense or ()} == {np.dtype(dtype)}
            assert num_calibrated == (3 if is_served_so else 0), "the default dtype is calibrated at start"
            short = await engine.encode(
                ["a"], EmbedOptions(embedding_dtype=EmbeddingDtype(dtype), dimensions=2)
            )
            assert [vector.shape for vector in short.dense or ()] == [(2,)]

    run(main())


def test_an_accepted_request_is_calibrated_while_the_engine_stops(home: Path) -> None:
    async def main() -> None:
        engine = fake_engine()
        await engine.astart()
        options = EmbedOptions(embedding_dtype=EmbeddingDtype.int8)
        request = asyncio.create_task(engine.encode(["four"], options))
        await asyncio.sleep(0)
        await engine.astop()
        assert [vector.dtype for vector in (await request).dense or ()] == [np.int8]

    run(main())


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_multi_vectors_have_no_int8_ranges(dtype: str) -> None:
    with pytest.raises(BadInput, match=f"not available as {dtype}; ask for float32"):
        call(
            fake_engine("kind=multivector"),
            "encode",
            ["a"],
            EmbedOptions(embedding_dtype=EmbeddingDtype(dtype)),
        )


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_a_multi_vector_model_is_not_served_as_int8(dtype: str) -> None:
    with pytest.raises(
        StartupError, match=f"--embedding-dtype {dtype} does not work with model 'debug.kind=multi"
    ):
        fake_engine("kind=multivector", embedding_dtype=dtype)


@pytest.mark.parametrize(
    ("kind", "task", "given"),
    [
        ("reranker", "rerank", {"query": "a", "docs": ["b"]}),
        ("classifier", "classify", {"sentences": ["a"]}),
        ("sparse", "encode", {"sentences": ["a"]}),
    ],
)
def test_models_without_dense_vectors_are_not_calibrated(
    kind: str, task: str, given: dict[str, Any], home: Path
) -> None:
    """One option may stand for several models."""
    assert call(fake_engine(f"kind={kind}", embedding_dtype="int8"), task, **given)
    assert not list(home.rglob("*.npy"))


def test_multi_vectors_come_in_the_other_dtypes() -> None:
    options = EmbedOptions(embedding_dtype=EmbeddingDtype.ubinary)
    [rows] = call(fake_engine("kind=multivector"), "encode", ["ab"], options).multivector
    assert rows.tolist() == [[255, 248]] * 2
