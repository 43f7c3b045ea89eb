"""When an engine's calibration rows are computed, kept and computed again; the file is tested elsewhere."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from infinity_emb import calibrator as calibrator_module
from infinity_emb.backends import fake
from infinity_emb.backends.base import Rows
from infinity_emb.calibration import calibration_texts
from infinity_emb.calibrator import Calibrator
from infinity_emb.config import EngineArgs
from infinity_emb.errors import Overloaded, StartupError
from infinity_emb.postprocess import Ranges
from infinity_emb.primitives import ModelInfo

PATIENCE_S = 30.0
T = TypeVar("T")
ARGS = EngineArgs(model_name_or_path="some/model", engine="debugengine")
INFO = replace(fake.load_model(ARGS).info, embedding_dimension=4, files_version="a1b2")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(coroutine, PATIENCE_S))


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFINITY_HOME", str(tmp_path / "cache"))


class Embedder:
    """Rows that depend on the text, and the texts that they were asked for."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.errors: list[Exception] = []

    async def __call__(self, texts: list[str]) -> Rows:
        self.asked.append(texts)
        await asyncio.sleep(0)
        if self.errors:
            raise self.errors.pop()
        return rows_of(texts)


def rows_of(texts: list[str]) -> Rows:
    rows = [np.random.default_rng(len(text)).standard_normal(4) for text in texts]
    return np.array(rows, dtype=np.float32)


def ranges_of(
    embed: Embedder, dimensions: int | None = None, *, args: EngineArgs = ARGS, info: ModelInfo = INFO
) -> Ranges:
    """Of an engine that has just been started."""
    return run(Calibrator(args, info, embed).ranges(dimensions))


def test_ranges_are_the_extremes_of_the_vectors_of_the_texts() -> None:
    ranges = ranges_of(embed := Embedder())

    assert embed.asked == [calibration_texts()]
    rows = rows_of(calibration_texts())
    assert ranges.low.tolist() == rows.min(axis=0).tolist()
    assert ranges.high.tolist() == rows.max(axis=0).tolist()


def test_ranges_of_fewer_dimensions_are_those_of_vectors_that_were_scaled_back() -> None:
    ranges = ranges_of(Embedder(), 2)

    rows = rows_of(calibration_texts())[:, :2].astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert ranges.low == pytest.approx(rows.min(axis=0), abs=1e-6)
    assert ranges.high == pytest.approx(rows.max(axis=0), abs=1e-6)


def test_texts_are_embedded_once_however_many_requests_wait_for_them() -> None:
    embed = Embedder()

    async def main() -> None:
        calibrator = Calibrator(ARGS, INFO, embed)
        found = await asyncio.gather(*(calibrator.ranges(dimensions) for dimensions in (None, 2, 4, None)))
        assert [len(ranges.low) for ranges in found] == [4, 2, 4, 4]
        await calibrator.ranges(3)

    run(main())
    assert len(embed.asked) == 1


def test_the_next_start_reads_the_rows_from_the_file() -> None:
    first, second = Embedder(), Embedder()
    ranges = ranges_of(first)
    again = ranges_of(second)

    assert second.asked == []
    assert (again.low.tolist(), again.high.tolist()) == (ranges.low.tolist(), ranges.high.tolist())


@pytest.mark.parametrize(
    ("args", "info"),
    [
        ({"model_name_or_path": "another/model"}, {}),
        ({}, {"files_version": "c3d4"}),
        ({}, {"engine": "optimum"}),
        ({}, {"dtype": "float16"}),
        ({}, {"pooling": "cls"}),
        ({}, {"prompts": {"usual": "as usual: "}, "default_prompt_name": "usual"}),
    ],
)
def test_another_model_has_rows_of_its_own(args: dict[str, Any], info: dict[str, Any]) -> None:
    ranges_of(Embedder())
    embed = Embedder()
    ranges_of(embed, args=replace(ARGS, **args), info=replace(INFO, **info))
    assert len(embed.asked) == 1


def test_prompts_that_are_not_the_default_do_not_count() -> None:
    ranges_of(Embedder())
    embed = Embedder()
    ranges_of(embed, info=replace(INFO, prompts={"query": "query: "}))
    assert embed.asked == []


def test_the_user_s_own_texts_are_taken_instead(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("one\nfifteen\n")
    ranges_of(Embedder())
    with caplog.at_level(logging.WARNING):
        ranges_of(embed := Embedder(), args=replace(ARGS, calibration_file=str(path)))

    assert embed.asked == [["one", "fifteen"]]
    assert "holds 2 different texts" in caplog.text


def test_a_file_that_is_not_there_is_named_and_nothing_is_embedded(tmp_path: Path) -> None:
    embed = Embedder()
    with pytest.raises(StartupError, match=r"cannot read the calibration file .*nowhere"):
        ranges_of(embed, args=replace(ARGS, calibration_file=str(tmp_path / "nowhere")))
    assert embed.asked == []


def test_files_are_not_read_on_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts may be megabytes on a slow disk, while which no other request would move."""
    threads: list[bool] = []

    def read(path: Path) -> list[str]:
        threads.append(threading.current_thread() is threading.main_thread())
        return ["one", "fifteen"]

    monkeypatch.setattr(calibrator_module, "read_texts", read)
    ranges_of(Embedder(), args=replace(ARGS, calibration_file=str(tmp_path / "texts.txt")))
    assert threads == [False]


def test_after_a_failure_the_next_request_tries_again() -> None:
    embed = Embedder()
    embed.errors = [Overloaded("the queue is full")]

    async def main() -> None:
        calibrator = Calibrator(ARGS, INFO, embed)
        first, second = await asyncio.gather(
            calibrator.ranges(None), calibrator.ranges(None), return_exceptions=True
        )
        assert isinstance(first, Overloaded)
        assert not isinstance(second, BaseException)

    run(main())
    assert len(embed.asked) == 2


def test_a_request_that_hangs_up_does_not_keep_the_others_from_their_ranges() -> None:
    embed = Embedder()

    async def main() -> None:
        calibrator = Calibrator(ARGS, INFO, embed)
        first = asyncio.create_task(calibrator.ranges(None))
        second = asyncio.create_task(calibrator.ranges(None))
        while not embed.asked:
            await asyncio.sleep(0)
        first.cancel()
        assert len((await second).low) == 4

    run(main())
    assert len(embed.asked) == 2
