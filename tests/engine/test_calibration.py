"""Compute calibration vectors once, and again when model, texts or options change."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from infinity_emb.backends import fake
from infinity_emb.backends.sample_texts import load_sample_texts
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.engine import calibration as calibration_module
from infinity_emb.engine.calibration import Calibrator
from infinity_emb.errors import Overloaded, StartupError
from infinity_emb.items import Float32Array, InputOptions, Outputs, RequestInput
from infinity_emb.postprocessing import QuantizationRanges
from infinity_emb.types import ModelInfo
from tests.support.event_loop import run

ARGS = EngineArgs(model_name_or_path="some/model", engine="debugengine")
INFO = replace(fake.load_model(ARGS).info, embedding_dimension=4, files_version="a1b2")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFINITY_HOME", str(tmp_path / "cache"))


class Embedder:
    """Return vectors that depend on the text, and record the texts."""

    def __init__(self) -> None:
        self.requested: list[list[str]] = []
        self.errors: list[Exception] = []

    async def run(self, inputs: Sequence[RequestInput], options: InputOptions) -> Outputs:
        texts = [str(given.value) for given in inputs]
        self.requested.append(texts)
        await asyncio.sleep(0)
        if self.errors:
            raise self.errors.pop()
        return Outputs({"dense": vectors_for(texts)}, np.ones(len(texts), dtype=np.int64))


def vectors_for(texts: list[str]) -> Float32Array:
    rows = [np.random.default_rng(len(text)).standard_normal(4) for text in texts]
    return np.array(rows, dtype=np.float32)


def find_ranges(
    embed: Embedder, dimensions: int | None = None, *, args: EngineArgs = ARGS, info: ModelInfo = INFO
) -> QuantizationRanges:
    """Return the ranges of an engine that was just started."""
    return run(find(Calibrator(args), embed, dimensions, info))


async def find(
    calibrator: Calibrator, embed: Embedder, dimensions: int | None = None, info: ModelInfo = INFO
) -> QuantizationRanges:
    @asynccontextmanager
    async def assist(_: None) -> AsyncIterator[Any]:
        yield SimpleNamespace(model=SimpleNamespace(info=info), runner=embed)

    slot: Any = SimpleNamespace(info=info)
    gate: Any = SimpleNamespace(assist=assist)
    await calibrator.prepare(slot, gate)
    return calibrator.ranges(dimensions)


def test_ranges_are_the_extremes_of_the_calibration_vectors() -> None:
    ranges = find_ranges(embed := Embedder())

    assert embed.requested == [load_sample_texts()]
    rows = vectors_for(load_sample_texts())
    assert ranges.low.tolist() == rows.min(axis=0).tolist()
    assert ranges.high.tolist() == rows.max(axis=0).tolist()


def test_ranges_of_fewer_dimensions_are_those_of_rescaled_vectors() -> None:
    ranges = find_ranges(Embedder(), 2)

    rows = vectors_for(load_sample_texts())[:, :2].astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert ranges.low == pytest.approx(rows.min(axis=0), abs=1e-6)
    assert ranges.high == pytest.approx(rows.max(axis=0), abs=1e-6)


def test_concurrent_requests_embed_the_texts_once() -> None:
    embed = Embedder()

    async def main() -> None:
        calibrator = Calibrator(ARGS)
        found = await asyncio.gather(
            *(find(calibrator, embed, dimensions) for dimensions in (None, 2, 4, None))
        )
        assert [len(ranges.low) for ranges in found] == [4, 2, 4, 4]
        await find(calibrator, embed, 3)

    run(main())
    assert len(embed.requested) == 1


def test_the_next_start_loads_the_file() -> None:
    first, second = Embedder(), Embedder()
    ranges = find_ranges(first)
    again = find_ranges(second)

    assert second.requested == []
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
def test_another_model_is_calibrated_separately(args: dict[str, Any], info: dict[str, Any]) -> None:
    find_ranges(Embedder())
    embed = Embedder()
    find_ranges(embed, args=replace(ARGS, **args), info=replace(INFO, **info))
    assert len(embed.requested) == 1


def test_prompts_other_than_the_default_do_not_matter() -> None:
    find_ranges(Embedder())
    embed = Embedder()
    find_ranges(embed, info=replace(INFO, prompts={"query": "query: "}))
    assert embed.requested == []


def test_a_users_own_texts_are_used_instead(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("one\nfifteen\n")
    find_ranges(Embedder())
    with caplog.at_level(logging.WARNING):
        find_ranges(embed := Embedder(), args=replace(ARGS, calibration_file=str(path)))

    assert embed.requested == [["one", "fifteen"]]
    assert "has only 2 different texts" in caplog.text


def test_a_missing_file_of_texts_is_reported_and_nothing_is_embedded(tmp_path: Path) -> None:
    embed = Embedder()
    with pytest.raises(StartupError, match=r"cannot read the calibration file .*nowhere"):
        find_ranges(embed, args=replace(ARGS, calibration_file=str(tmp_path / "nowhere")))
    assert embed.requested == []


def test_files_are_not_read_on_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts may be megabytes on a slow disk, while which no other request would move."""
    threads: list[bool] = []

    def read(path: Path) -> list[str]:
        threads.append(threading.current_thread() is threading.main_thread())
        return ["one", "fifteen"]

    monkeypatch.setattr(calibration_module, "read_texts", read)
    find_ranges(Embedder(), args=replace(ARGS, calibration_file=str(tmp_path / "texts.txt")))
    assert threads == [False]


def test_after_a_failure_the_next_request_tries_again() -> None:
    embed = Embedder()
    embed.errors = [Overloaded("the queue is full")]

    async def main() -> None:
        calibrator = Calibrator(ARGS)
        first, second = await asyncio.gather(
            find(calibrator, embed), find(calibrator, embed), return_exceptions=True
        )
        assert isinstance(first, Overloaded)
        assert not isinstance(second, BaseException)

    run(main())
    assert len(embed.requested) == 2


def test_a_cancelled_request_does_not_affect_the_others() -> None:
    embed = Embedder()

    async def main() -> None:
        calibrator = Calibrator(ARGS)
        first = asyncio.create_task(find(calibrator, embed))
        second = asyncio.create_task(find(calibrator, embed))
        while not embed.requested:
            await asyncio.sleep(0)
        first.cancel()
        assert len((await second).low) == 4

    run(main())
    assert len(embed.requested) == 1
