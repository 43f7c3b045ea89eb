"""Unload an idle model, and load it again for the next request."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.errors import DeadlineExceeded, EngineNotReady
from infinity_emb.scheduling.request_context import request_options
from infinity_emb.types import EmbeddingDtype, TokenIdPolicy
from tests.support.event_loop import PATIENCE_S, run
from tests.support.fake_engines import fake_engine


async def wait_until_unloaded(engine: AsyncEmbeddingEngine) -> None:
    while engine.slot.is_loaded:
        await asyncio.sleep(0.01)


async def embed_length(engine: AsyncEmbeddingEngine, text: str) -> int:
    """Return the length of a text, as its vector tells it."""
    [vector], _ = await engine.embed([text])
    return int(vector[0])


# Idle


def test_an_idle_model_is_unloaded_and_loaded_by_the_next_request() -> None:
    async def main() -> None:
        async with fake_engine(idle_unload_s=1) as engine:
            loop = asyncio.get_running_loop()
            await asyncio.sleep(0.7)
            assert await embed_length(engine, "abc") == 3  # the time begins anew
            asked_s = loop.time()
            await wait_until_unloaded(engine)
            assert 0.9 <= loop.time() - asked_s < 5
            assert engine.is_running
            assert engine.slot.is_ready
            assert not engine.slot.is_dead
            assert not engine.is_overloaded()
            assert engine.info.max_tokens == 8192
            assert not engine.status().is_loaded
            assert await embed_length(engine, "four") == 4
            assert engine.slot.is_loaded
            assert engine.status().worker.num_items == 2  # counters go on
            await wait_until_unloaded(engine)  # the time of a model that came back runs too

    run(main())


def test_a_model_with_a_long_request_is_not_idle() -> None:
    async def main() -> None:
        async with fake_engine("delay_s=1.5", idle_unload_s=1) as engine:
            assert await embed_length(engine, "abc") == 3
            assert engine.slot.is_loaded

    run(main())


def test_a_model_without_an_idle_limit_stays_loaded() -> None:
    async def main() -> None:
        async with fake_engine() as engine:
            await embed_length(engine, "a")
            await asyncio.sleep(0.05)
            assert engine.slot.is_loaded

    run(main())


def test_an_unloaded_model_has_no_threads_and_stops_at_once() -> None:
    async def main() -> None:
        before = set(threading.enumerate())
        async with fake_engine() as engine:
            engine.slot.unload_if_idle()
            await wait_until_unloaded(engine)
            for thread in set(threading.enumerate()) - before:
                if thread.name.startswith("infinity-"):
                    thread.join(PATIENCE_S)
                    assert not thread.is_alive()
        assert not engine.is_running
        with pytest.raises(EngineNotReady):
            await engine.embed(["a"])
        async with engine:  # started again, it is loaded when it is asked for
            assert not engine.slot.is_loaded
            assert await embed_length(engine, "ab") == 2

    run(main())


def test_every_task_loads_an_unloaded_model() -> None:
    """Also those that ask first what the model can do."""

    async def main() -> None:
        options = {"token_ids": TokenIdPolicy.model, "embedding_dtype": EmbeddingDtype.float16}
        async with fake_engine("kind=embedder", **options) as engine:
            for ask in (
                lambda: engine.embed(["a"]),
                lambda: engine.encode_passages(["a", "b"]),
                lambda: engine.rerank(query="a", docs=["b"]),
                lambda: engine.tokenizer.tokenize(["a"]),
                lambda: engine.tokenizer.decode([[97]]),
                lambda: engine.image_embed(images=[FakeImage()]),
            ):
                engine.slot.unload_if_idle()
                await wait_until_unloaded(engine)
                await ask()
                assert engine.slot.is_loaded
        async with fake_engine("kind=classifier") as engine:
            engine.slot.unload_if_idle()
            await wait_until_unloaded(engine)
            assert (await engine.classify(sentences=["a"]))[1] == 1

    run(main())


class FakeImage:
    """What is asked of a PIL image."""

    width = height = 64

    def convert(self, _: str) -> Any:
        return np.zeros((64, 64, 3), dtype=np.uint8)


# Waiting for a model


def test_concurrent_requests_wait_for_one_load(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with fake_engine("load_delay_s=0.2") as engine:
            engine.slot.unload_if_idle()
            await wait_until_unloaded(engine)
            caplog.clear()
            lengths = await asyncio.gather(*(embed_length(engine, "a" * n) for n in range(1, 20)))
            assert lengths == list(range(1, 20))

    with caplog.at_level(logging.INFO, "infinity_emb"):
        run(main())
    assert sum("loaded again in" in record.message for record in caplog.records) == 1


def test_a_load_goes_on_when_the_request_that_began_it_times_out() -> None:
    async def main() -> None:
        async with fake_engine("load_delay_s=0.4") as engine:
            engine.slot.unload_if_idle()
            await wait_until_unloaded(engine)
            with request_options(timeout_s=0.1), pytest.raises(DeadlineExceeded):
                await engine.embed(["a"])
            assert not engine.slot.is_loaded
            assert await embed_length(engine, "ab") == 2

    run(main())


def test_a_failed_load_fails_all_waiting_requests_and_the_next_one_tries_again(tmp_path: Path) -> None:
    fault = tmp_path / "fault"

    async def main() -> None:
        async with fake_engine(f"load_fails={fault}&load_delay_s=0.1") as engine:
            for reason in ("memory", "broken weights"):
                fault.write_text(reason)
                engine.slot.unload_if_idle()
                await wait_until_unloaded(engine)
                errors = await asyncio.gather(
                    *(engine.embed(["a"]) for _ in range(5)), return_exceptions=True
                )
                assert [type(error) for error in errors] == [EngineNotReady] * 5
                assert len({id(error) for error in errors}) == 5
                assert reason in str(errors[0])
                assert engine.slot.is_ready
                fault.unlink()
                assert await embed_length(engine, "abc") == 3

    run(main())


def test_a_stop_finishes_requests_that_wait_for_the_model() -> None:
    async def main(drain_timeout_s: float) -> list[Any]:
        engine = fake_engine("load_delay_s=0.3")
        await engine.astart()
        engine.slot.unload_if_idle()
        await wait_until_unloaded(engine)
        waiting = [asyncio.create_task(embed_length(engine, "abc")) for _ in range(3)]
        await asyncio.sleep(0.05)
        await engine.astop(drain_timeout_s)
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        with pytest.raises(EngineNotReady):
            await engine.embed(["a"])
        return answers

    assert run(main(PATIENCE_S)) == [3, 3, 3]
    assert [type(each) for each in run(main(0.0))] == [EngineNotReady] * 3


def test_the_process_does_not_wait_for_a_load_at_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []
    start = threading.Thread.start

    def note(thread: threading.Thread) -> None:
        threads.append(thread)
        start(thread)

    async def main() -> None:
        async with fake_engine("load_delay_s=0.1") as engine:
            engine.slot.unload_if_idle()
            await wait_until_unloaded(engine)
            await embed_length(engine, "a")

    monkeypatch.setattr(threading.Thread, "start", note)
    run(main())
    [loader] = [thread for thread in threads if thread.name == "infinity-loader"]
    assert loader.daemon


def test_a_request_that_waits_for_an_unload_does_not_load_during_a_stop() -> None:
    async def main() -> None:
        before = set(threading.enumerate())
        async with fake_engine() as engine:
            engine.slot.unload_if_idle()  # the unloading has begun
            waiting = asyncio.create_task(embed_length(engine, "abc"))
            await asyncio.sleep(0)
            stopping = asyncio.create_task(engine.astop())
            with pytest.raises(EngineNotReady, match="shutting down"):
                await waiting
            await stopping
            assert not engine.is_running
        assert {each for each in set(threading.enumerate()) - before if "replica" in each.name} == set()

    run(main())


def test_a_reload_that_waits_for_an_unload_does_not_load_during_a_stop() -> None:
    async def main() -> None:
        engine = fake_engine("load_delay_s=0.05")
        await engine.astart()
        engine.slot.unload_if_idle()  # the unloading has begun
        reloading = asyncio.create_task(engine.slot.reload())
        await asyncio.sleep(0)
        await engine.astop()
        with pytest.raises(EngineNotReady, match="shutting down"):
            await reloading
        await engine.astart()
        assert await embed_length(engine, "abc") == 3
        await engine.astop()

    run(main())
