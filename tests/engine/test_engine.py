"""Construct, start and stop an engine, and refuse tasks that its model does not support."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import pytest

from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.errors import (
    EngineNotReady,
    ModelNotDeployedError,
)
from tests.support.event_loop import PATIENCE_S, run
from tests.support.fake_engines import call, fake_engine, read_vector_lengths
from tests.support.media_files import make_png


def test_the_deprecated_constructor_warns_and_takes_the_same_options() -> None:
    with pytest.warns(DeprecationWarning, match="from_args"):
        engine = AsyncEmbeddingEngine("debug", engine="debugengine", batch_size=7)
    assert engine.engine_args == EngineArgs(model_name_or_path="debug", engine="debugengine", batch_size=7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AsyncEmbeddingEngine.from_args(engine.engine_args)


def test_an_engine_describes_itself() -> None:
    engine = fake_engine(served_model_name="mine", max_batch_tokens=77)

    assert repr(engine) == "AsyncEmbeddingEngine('mine', running=False)"
    assert engine.capabilities == {"embed"}
    assert engine.info.embedding_dimension == 13
    assert engine.max_batch_tokens == 77
    assert fake_engine().max_batch_tokens > 77


@pytest.mark.parametrize(
    ("kind", "task", "arguments", "able"),
    [
        ("auto", "rerank", {"query": "q", "docs": ["d"], "raw_scores": True, "top_n": 1}, "embed"),
        ("auto", "classify", {"sentences": ["a"], "raw_scores": True}, "embed"),
        ("auto", "image_embed", {"images": ["i"], "matryoshka_dim": 2}, "embed"),
        ("auto", "audio_embed", {"audios": ["a"], "matryoshka_dim": 2}, "embed"),
        ("reranker", "embed", {"sentences": ["a"]}, "rerank"),
        ("reranker", "classify", {"sentences": ["a"]}, "rerank"),
        ("classifier", "rerank", {"query": "q", "docs": ["d"]}, "classify"),
        ("multivector", "audio_embed", {"audios": ["a"]}, "embed, rerank, image_embed"),
    ],
)
def test_a_task_that_the_model_does_not_support_is_refused(
    kind: str, task: str, arguments: dict[str, Any], able: str
) -> None:
    engine = fake_engine(f"kind={kind}", served_model_name="mine")
    with pytest.raises(ModelNotDeployedError, match=f"'mine' does not support '{task}'; it supports {able}$"):
        call(engine, task, **arguments)


@pytest.mark.parametrize("task", ["encode", "encode_passages"])
@pytest.mark.parametrize("kind", ["reranker", "classifier"])
def test_a_scoring_model_does_not_embed(kind: str, task: str) -> None:
    with pytest.raises(ModelNotDeployedError, match="does not support 'embed'"):
        call(fake_engine(f"kind={kind}"), task, ["a"])


def test_an_engine_that_is_not_started_refuses_every_task() -> None:
    engine = fake_engine("kind=embedder")

    assert not engine.is_running
    assert not engine.slot.is_dead
    for task, arguments in (
        ("embed", {"sentences": ["a"]}),
        ("encode_passages", {"texts": ["a"]}),
        ("rerank", {"query": "q", "docs": ["a"]}),
    ):
        with pytest.raises(EngineNotReady, match="is not started; use `async with engine:`, or `await"):
            run(getattr(engine, task)(**arguments))
    run(engine.astop())


def test_an_engine_that_was_stopped_says_so() -> None:
    engine = fake_engine("kind=embedder")

    async def start_and_stop() -> None:
        async with engine:
            pass
        with pytest.raises(EngineNotReady, match="was stopped, is shutting down or has crashed"):
            await engine.embed(["a"])

    run(start_and_stop())


def test_an_engine_can_be_restarted_on_another_event_loop() -> None:
    engine = fake_engine("kind=embedder")

    async def use() -> None:
        async with engine:
            assert read_vector_lengths((await engine.embed(["aa", "b"]))[0]) == [2, 1]
            assert read_vector_lengths((await engine.image_embed(images=[make_png(5)] * 20))[0]) == [5] * 20
        assert not engine.is_running
        with pytest.raises(EngineNotReady):
            await engine.embed(["a"])

    for _ in range(3):
        run(use())
    assert engine.status().worker.num_items == 66


def test_an_engine_outlives_the_event_loop_that_started_it() -> None:
    engine = fake_engine("kind=embedder")
    run(engine.astart())
    for _ in range(2):
        assert read_vector_lengths(run(engine.embed(["aa"]))[0]) == [2]
        assert read_vector_lengths(run(engine.image_embed(images=[make_png(5)] * 20))[0]) == [5] * 20
    run(engine.astop())


@pytest.mark.usefixtures("dies_for_good")
def test_a_crashed_engine_reports_it_and_can_be_started_again() -> None:
    engine = fake_engine("die_on=poison")

    async def main() -> None:
        async with engine:
            with pytest.raises(EngineNotReady):
                await engine.embed(["poison"])
            assert engine.slot.is_dead
        async with engine:
            assert engine.is_running
            assert not engine.slot.is_dead
            await engine.embed(["fine"])

    run(main())


def test_no_thread_is_left_after_a_stop() -> None:
    before = set(threading.enumerate())
    call(fake_engine(device_id=(0, 1)), "embed", ["x" * 2000])
    for thread in set(threading.enumerate()) - before:
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), thread.name
