"""Models that are given up and loaded again under those who use them."""

from __future__ import annotations

import asyncio
import gc
import logging
import tempfile
import threading
import weakref
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infinity_emb import residence
from infinity_emb.caller import calling
from infinity_emb.config import EngineArgs
from infinity_emb.engine import AsyncEmbeddingEngine
from infinity_emb.errors import DeadlineExceeded, EngineNotReady, StartupError
from infinity_emb.primitives import EmbeddingDtype, InferenceEngine, TokenIdsOf
from tests.small_models.embedders import save_small_model

PATIENCE_S = 30.0
T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(coroutine, PATIENCE_S))


def fake_engine(faults: str = "", **options: Any) -> AsyncEmbeddingEngine:
    return AsyncEmbeddingEngine.from_args(
        EngineArgs(
            model_name_or_path=f"debug?{faults}",
            engine=InferenceEngine.debugengine,
            served_model_name="debug",
            **options,
        )
    )


def be_idle(engine: AsyncEmbeddingEngine) -> None:
    """As if its time without a request had passed."""
    engine._running._residence._unload_idle()


async def until_unloaded(engine: AsyncEmbeddingEngine) -> None:
    while engine.is_loaded:
        await asyncio.sleep(0.01)


async def length_of(engine: AsyncEmbeddingEngine, text: str) -> int:
    """As the fake engine tells it."""
    [vector], _ = await engine.embed([text])
    return int(vector[0])


# Idle


def test_a_model_nobody_asks_for_is_unloaded_after_its_time_and_loaded_by_the_next_request() -> None:
    async def main() -> None:
        async with fake_engine(idle_unload_s=1) as engine:
            loop = asyncio.get_running_loop()
            await asyncio.sleep(0.7)
            assert await length_of(engine, "abc") == 3  # the time begins anew
            asked_s = loop.time()
            await until_unloaded(engine)
            assert 0.9 <= loop.time() - asked_s < 5
            assert engine.is_running
            assert engine.is_ready
            assert not engine.is_dead
            assert not engine.is_overloaded()
            assert engine.info.max_tokens == 8192
            assert engine.describe_state()["loaded"] is False
            assert await length_of(engine, "four") == 4
            assert engine.is_loaded
            assert engine.stats.num_items == 2  # counters go on
            await until_unloaded(engine)  # the time of a model that came back runs too

    run(main())


def test_a_model_that_is_asked_for_is_not_idle_however_long_that_takes() -> None:
    async def main() -> None:
        async with fake_engine("delay_s=1.5", idle_unload_s=1) as engine:
            assert await length_of(engine, "abc") == 3
            assert engine.is_loaded

    run(main())


def test_a_model_without_a_limit_is_kept() -> None:
    async def main() -> None:
        async with fake_engine() as engine:
            await length_of(engine, "a")
            assert engine._running._residence._timer is None

    run(main())


def test_an_idle_model_has_no_threads_and_ends_at_once() -> None:
    async def main() -> None:
        before = set(threading.enumerate())
        async with fake_engine() as engine:
            be_idle(engine)
            await until_unloaded(engine)
            for thread in set(threading.enumerate()) - before:
                if thread.name.startswith("infinity-"):
                    thread.join(PATIENCE_S)
                    assert not thread.is_alive()
        assert not engine.is_running
        with pytest.raises(EngineNotReady):
            await engine.embed(["a"])
        async with engine:  # started again, it is loaded when it is asked for
            assert not engine.is_loaded
            assert await length_of(engine, "ab") == 2

    run(main())


def test_every_task_brings_an_idle_model_back() -> None:
    """Also those that ask first what the model can do."""

    async def main() -> None:
        options = {"token_ids": TokenIdsOf.model, "embedding_dtype": EmbeddingDtype.float16}
        async with fake_engine("kind=embedder", **options) as engine:
            for ask in (
                lambda: engine.embed(["a"]),
                lambda: engine.encode_passages(["a", "b"]),
                lambda: engine.rerank(query="a", docs=["b"]),
                lambda: engine.tokenize(["a"]),
                lambda: engine.decode([[97]]),
                lambda: engine.image_embed(images=[_Image()]),
            ):
                be_idle(engine)
                await until_unloaded(engine)
                await ask()
                assert engine.is_loaded
        async with fake_engine("kind=classifier") as engine:
            be_idle(engine)
            await until_unloaded(engine)
            assert (await engine.classify(sentences=["a"]))[1] == 1

    run(main())


class _Image:
    """What is asked of a PIL image."""

    width = height = 64

    def convert(self, _: str) -> Any:
        return np.zeros((64, 64, 3), dtype=np.uint8)


# Waiting for a model


def test_all_who_come_meanwhile_wait_for_one_load(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with fake_engine("load_delay_s=0.2") as engine:
            be_idle(engine)
            await until_unloaded(engine)
            caplog.clear()
            lengths = await asyncio.gather(*(length_of(engine, "a" * n) for n in range(1, 20)))
            assert lengths == list(range(1, 20))

    with caplog.at_level(logging.INFO, "infinity_emb"):
        run(main())
    assert sum("is loaded again" in record.message for record in caplog.records) == 1


def test_a_request_waits_within_its_deadline_and_another_has_use_of_the_load() -> None:
    async def main() -> None:
        async with fake_engine("load_delay_s=0.4") as engine:
            be_idle(engine)
            await until_unloaded(engine)
            with calling(timeout_s=0.1), pytest.raises(DeadlineExceeded):
                await engine.embed(["a"])
            assert not engine.is_loaded
            assert await length_of(engine, "ab") == 2

    run(main())


def test_a_load_that_fails_is_an_error_for_each_and_the_next_request_tries_again(tmp_path: Path) -> None:
    fault = tmp_path / "fault"

    async def main() -> None:
        async with fake_engine(f"load_fails={fault}&load_delay_s=0.1") as engine:
            for reason in ("memory", "broken weights"):
                fault.write_text(reason)
                be_idle(engine)
                await until_unloaded(engine)
                errors = await asyncio.gather(
                    *(engine.embed(["a"]) for _ in range(5)), return_exceptions=True
                )
                assert [type(error) for error in errors] == [EngineNotReady] * 5
                assert len({id(error) for error in errors}) == 5
                assert reason in str(errors[0])
                assert engine.is_ready
                fault.unlink()
                assert await length_of(engine, "abc") == 3

    run(main())


def test_what_waits_for_a_model_when_the_server_stops_is_finished_within_the_deadline() -> None:
    async def main(drain_timeout_s: float) -> list[Any]:
        engine = fake_engine("load_delay_s=0.3")
        await engine.astart()
        be_idle(engine)
        await until_unloaded(engine)
        waiting = [asyncio.create_task(length_of(engine, "abc")) for _ in range(3)]
        await asyncio.sleep(0.05)
        await engine.astop(drain_timeout_s)
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        with pytest.raises(EngineNotReady):
            await engine.embed(["a"])
        return answers

    assert run(main(PATIENCE_S)) == [3, 3, 3]
    assert [type(each) for each in run(main(0.0))] == [EngineNotReady] * 3


def test_a_process_does_not_wait_for_a_load(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []
    start = threading.Thread.start

    def note(thread: threading.Thread) -> None:
        threads.append(thread)
        start(thread)

    async def main() -> None:
        async with fake_engine("load_delay_s=0.1") as engine:
            be_idle(engine)
            await until_unloaded(engine)
            await length_of(engine, "a")

    monkeypatch.setattr(threading.Thread, "start", note)
    run(main())
    [loader] = [thread for thread in threads if thread.name == "infinity-loader"]
    assert loader.daemon


# Whatever comes together


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["ask", "ask", "ask", "cancel", "idle", "reload", "break", "mend", "wait", "restart"]
        ),
        max_size=25,
    )
)
def test_every_request_gets_one_answer_whatever_happens_to_the_model(events: list[str]) -> None:
    async def main(fault: Path) -> None:
        engine = fake_engine(f"load_fails={fault}&load_delay_s=0.002&delay_s=0.001")
        await engine.astart()
        asked: list[asyncio.Task[int]] = []
        cancelled: set[asyncio.Task[int]] = set()
        reloads: list[asyncio.Task[None]] = []
        was_broken = was_restarted = False
        for event in events:
            if event == "ask":
                asked.append(asyncio.create_task(length_of(engine, "a" * (1 + len(asked)))))
            elif event == "cancel" and asked and asked[-1].cancel():
                cancelled.add(asked[-1])
            elif event == "idle":
                be_idle(engine)
            elif event == "reload":
                reloads.append(asyncio.create_task(engine.areload()))
            elif event == "break":
                was_broken = True
                fault.write_text("broken weights")
            elif event == "mend":
                fault.unlink(missing_ok=True)
            elif event == "restart":
                was_restarted = True
                await engine.astop()
                await engine.astart()
            await asyncio.sleep(0.003 if event == "wait" else 0)
        fault.unlink(missing_ok=True)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        for number, (task, answer) in enumerate(zip(asked, answers, strict=True), start=1):
            if task in cancelled:
                assert answer == number or isinstance(answer, asyncio.CancelledError)
            elif was_broken or was_restarted:
                assert answer == number or isinstance(answer, EngineNotReady)
            else:
                assert answer == number
        for outcome in await asyncio.gather(*reloads, return_exceptions=True):
            assert outcome is None or isinstance(outcome, (StartupError, EngineNotReady))
        assert await length_of(engine, "still here") == 10
        assert engine.overload_status().results_absolute == 0
        await engine.astop()
        assert engine._running.num_accepted_items == 0

    with tempfile.TemporaryDirectory() as folder:
        run(main(Path(folder) / "fault"))


# Memory


class Large:
    """Something a failed load had in memory."""


def test_what_a_failed_load_had_in_memory_is_given_back() -> None:
    kept: list[weakref.ref[Large]] = []

    def load() -> None:
        large = Large()
        kept.append(weakref.ref(large))
        raise ZeroDivisionError("in the model's own code")

    failure = run(residence.load_on_own_thread(load, "some model"))
    assert isinstance(failure, StartupError)
    assert "ZeroDivisionError: in the model's own code" in str(failure)
    assert kept[0]() is None


def test_a_real_model_is_out_of_memory_and_answers_the_same_when_it_is_back(tmp_path: Path) -> None:
    args = EngineArgs(
        model_name_or_path=str(save_small_model(tmp_path, "bert")),
        device="cpu",
        model_warmup=False,
        token_ids="model",
        vector_memory_cache_mb=1,
    )

    def tensors_of(engine: AsyncEmbeddingEngine) -> list[weakref.ref[Any]]:
        backend: Any = engine._model.replicas[0]
        return [weakref.ref(each) for each in backend._pipeline.model.parameters()]

    async def main() -> None:
        async with AsyncEmbeddingEngine.from_args(args) as engine:
            texts = ["one", "two words", "three more words"]
            before, _ = await engine.embed(texts)
            await engine.tokenize(texts)
            gc.collect()
            for away in (_idle_away, _reload_away):
                weights = tensors_of(engine)
                assert weights
                assert all(each() is not None for each in weights)
                await away(engine)
                assert [each for each in weights if each() is not None] == []
                after, _ = await engine.embed(texts)
                assert np.array_equal(np.stack(before), np.stack(after))
            weights = tensors_of(engine)
            await engine.aunload()
            assert [each for each in weights if each() is not None] == []
            assert not engine.is_loaded

    run(main())


async def _idle_away(engine: AsyncEmbeddingEngine) -> None:
    be_idle(engine)
    await engine._running._residence._settled()


async def _reload_away(engine: AsyncEmbeddingEngine) -> None:
    await engine.areload()


def test_a_request_that_waits_for_the_end_of_an_unloading_does_not_bring_the_model_back_into_a_stop() -> None:
    async def main() -> None:
        before = set(threading.enumerate())
        async with fake_engine() as engine:
            be_idle(engine)  # the unloading has begun
            waiting = asyncio.create_task(length_of(engine, "abc"))
            await asyncio.sleep(0)
            stopping = asyncio.create_task(engine.astop())
            with pytest.raises(EngineNotReady, match="shutting down"):
                await waiting
            await stopping
            assert not engine.is_running
        assert {each for each in set(threading.enumerate()) - before if "replica" in each.name} == set()

    run(main())


def test_a_reload_that_waits_for_the_end_of_an_unloading_does_not_bring_the_model_back_into_a_stop() -> None:
    async def main() -> None:
        engine = fake_engine("load_delay_s=0.05")
        await engine.astart()
        be_idle(engine)  # the unloading has begun
        reloading = asyncio.create_task(engine.areload())
        await asyncio.sleep(0)
        await engine.astop()
        with pytest.raises(EngineNotReady, match="shutting down"):
            await reloading
        await engine.astart()
        assert await length_of(engine, "abc") == 3
        await engine.astop()

    run(main())
