"""An engine of a front end and the session that computes for it, both in one event loop."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest

from infinity_emb.backends.sample_texts import load_sample_texts
from infinity_emb.cli.front_ends.client import EngineClient
from infinity_emb.cli.front_ends.counters import read_counters
from infinity_emb.cli.front_ends.engine_service import EngineService
from infinity_emb.cli.front_ends.frames import Header
from infinity_emb.cli.front_ends.remote_engine import RemoteEngine
from infinity_emb.cli.front_ends.session import Session
from infinity_emb.engine.array import AsyncEngineArray
from infinity_emb.engine.calibration_file import CalibrationFile
from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.engine.results import EmbedOptions
from infinity_emb.errors import BackendFailed, DeadlineExceeded, EngineNotReady, Overloaded
from infinity_emb.items import InputOptions, number_inputs
from infinity_emb.scheduling.fair_queue import Flow
from infinity_emb.scheduling.request_context import RequestContext, request_options, set_request
from infinity_emb.scheduling.stages import RequestStages
from tests.support.event_loop import PATIENCE_S, run
from tests.support.fake_engines import fake_engine


class World(NamedTuple):
    """The engine process's engine, the front ends' engines, and what is between them."""

    engine: AsyncEmbeddingEngine
    remote: list[RemoteEngine]
    clients: list[EngineClient]
    sessions: list[Session]
    lost: list[Session]
    service: EngineService


@asynccontextmanager
async def connected(faults: str = "", *, num_front_ends: int = 1, **options: Any) -> AsyncIterator[World]:
    engine = fake_engine(faults, **options)
    lost: list[Session] = []
    clients: list[EngineClient] = []
    remote: list[RemoteEngine] = []
    async with engine:
        service = EngineService(AsyncEngineArray([engine]), on_ready=lambda _: None, on_lost=lost.append)
        for _ in range(num_front_ends):
            client = EngineClient()
            ours, theirs = socket.socketpair()
            await service.open_session().link.connect(ours)
            await client.link.connect(theirs)
            front_end = RemoteEngine(engine, client, 0, num_front_ends=num_front_ends)
            client.make_report = partial(make_report, front_end)
            await front_end.astart()
            clients.append(client)
            remote.append(front_end)
        sessions = list(service.sessions)
        try:
            yield World(engine, remote, clients, sessions, lost, service)
        finally:
            for client in clients:
                client.link.close()
            for session in sessions:
                session.link.close()
            await wait_until(lambda: all(client.link.is_lost for client in clients))


def make_report(engine: RemoteEngine) -> Header:
    return {"models": {"debug": read_counters(engine.status())}, "metrics": []}


async def wait_until(is_true: Any) -> None:
    async def wait() -> None:
        while not is_true():
            await asyncio.sleep(0.001)

    await asyncio.wait_for(wait(), PATIENCE_S)


def test_outputs_of_all_kinds_are_those_of_the_engine() -> None:
    async def main() -> None:
        async with connected("kind=embedder") as world:
            texts = [f"text {'x' * number}" for number in range(200)]
            for outputs in (("dense",), ("sparse",), ("multivector",), ("dense", "sparse")):
                options = EmbedOptions(outputs=outputs)
                expected = await world.engine.encode(texts, options)
                got = await world.remote[0].encode(texts, options)
                assert got.num_tokens == expected.num_tokens
                for name in outputs:
                    for first, second in zip(expected.get(name), got.get(name), strict=True):
                        np.testing.assert_array_equal(first, second)

    run(main())


@pytest.mark.parametrize(("kind", "task"), [("reranker", "rerank"), ("classifier", "classify")])
def test_scores_are_those_of_the_engine(kind: str, task: str) -> None:
    given: dict[str, Any] = (
        {"query": "q", "docs": ["a", "bbb", "cc"]} if task == "rerank" else {"sentences": ["a", "bb"]}
    )

    async def main() -> None:
        async with connected(f"kind={kind}") as world:
            expected = await getattr(world.engine, task)(**given)
            assert await getattr(world.remote[0], task)(**given) == expected

    run(main())


@pytest.fixture
def _nothing_is_calibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every process compute what another one has saved."""
    monkeypatch.setattr(CalibrationFile, "load", lambda _: None)


@pytest.mark.usefixtures("_nothing_is_calibrated")
def test_int8_vectors_are_calibrated_even_if_the_queue_is_full() -> None:
    """The dialect of Cohere quantizes after the vectors were computed, so outside of their admission."""

    async def main() -> None:
        async with connected(max_queue_items=1, batch_size=1) as world:
            vectors = np.array((await world.remote[0].embed(["text"]))[0], dtype=np.float32)
            await wait_until(lambda: world.engine.status().num_items == 0)
            world.engine.gate.admission.admit(1, Flow())
            with pytest.raises(Overloaded):
                await world.remote[0].embed(["text"])
            got = await world.remote[0].embedder.quantize(vectors, "int8")
            world.engine.gate.admission.release(1, Flow())
            assert world.engine.status().worker.num_items == 1 + len(load_sample_texts())
            np.testing.assert_array_equal(got, await world.engine.embedder.quantize(vectors, "int8"))

    run(main())


@pytest.mark.usefixtures("_nothing_is_calibrated")
def test_a_front_end_calibrates_at_start_where_vectors_are_int8_by_default() -> None:
    async def main() -> None:
        async with connected(embedding_dtype="int8") as world:
            num_texts = len(load_sample_texts())
            assert world.engine.status().worker.num_items == 2 * num_texts  # of both processes
            expected, _ = await world.engine.embed(["a", "bb"])
            got, _ = await world.remote[0].embed(["a", "bb"])
            np.testing.assert_array_equal(got, expected)

    run(main())


@pytest.mark.usefixtures("_nothing_is_calibrated")
def test_requests_that_are_late_do_not_stop_the_calibration() -> None:
    """Each began it anew, so that none ever had a result."""

    async def main() -> None:
        async with connected("delay_s=0.01", batch_size=8) as world:
            for engine in (world.engine, world.remote[0]):
                num_late = 0
                while True:
                    try:
                        with request_options(timeout_s=0.1):
                            await engine.encode(["text"], EmbedOptions(embedding_dtype="int8"))
                        break
                    except DeadlineExceeded:
                        num_late += 1
                assert 1 <= num_late < 50

    run(main())


@pytest.mark.usefixtures("_nothing_is_calibrated")
def test_a_start_has_as_long_for_the_calibration_as_it_takes() -> None:
    async def main() -> None:
        options = {"embedding_dtype": "int8", "request_timeout_s": 1}
        async with connected("delay_s=0.03", batch_size=8, **options) as world:
            assert world.remote[0].is_running

    run(main())


def test_what_arrives_after_its_request_has_failed_leaves_nothing_behind() -> None:
    """An early input fails while later ones are on their way."""

    async def main() -> None:
        async with connected("fail_on=poison") as world:
            for number in range(20):
                texts = [f"poison {number}", *(f"text {number} {index}" for index in range(64 * 12))]
                with pytest.raises(BackendFailed):
                    await world.remote[0].embed(texts)
            await wait_until(lambda: world.sessions[0].num_requests == 0)
            await wait_until(lambda: world.engine.status().num_items == 0)

    run(main())


def test_requests_that_wait_for_an_unload_that_fails_get_its_error() -> None:
    may_fail = threading.Event()

    def fail() -> None:
        may_fail.wait(PATIENCE_S)
        raise RuntimeError("the device is gone")

    async def main() -> None:
        async with connected() as world:
            slot = world.engine.slot
            for engine in (world.engine, world.remote[0]):
                await slot.ensure_open()
                assert slot.model is not None
                slot.model = replace(slot.model, free_memory=fail)
                await wait_until(lambda: not slot.num_active)
                may_fail.clear()
                slot.unload_if_idle()
                await wait_until(lambda: slot.open_model is None)
                task = asyncio.ensure_future(engine.embed(["text"]))
                await wait_until(lambda: world.engine.status().num_items == 1)
                may_fail.set()
                with pytest.raises(EngineNotReady, match="the device is gone"):
                    await asyncio.wait_for(task, PATIENCE_S)
                await wait_until(lambda: world.engine.status().num_items == 0)
            assert (await world.remote[0].embed(["text"]))[1] == 4

    run(main())


def test_a_reloaded_model_computes_nothing_that_was_encoded_for_the_one_before() -> None:
    async def main(is_remote: bool) -> None:
        async with connected() as world:
            slot = world.engine.slot
            engine = world.remote[0] if is_remote else world.engine
            assert engine.slot.open_model is not None
            assert slot.model is not None
            model = engine.slot.open_model.model
            may_encode = threading.Event()

            def encode(*arguments: Any) -> Any:
                may_encode.wait(PATIENCE_S)
                return model.encode(*arguments)

            engine.slot.open_model.runner._model = replace(model, encode=encode)  # type: ignore[attr-defined]
            task = asyncio.ensure_future(engine.embed(["x" * 2000]))  # encoded on a thread
            await wait_until(lambda: engine.status().num_items == 1)
            await slot.reload(drain_timeout_s=0)
            may_encode.set()
            with pytest.raises(EngineNotReady):
                await asyncio.wait_for(task, PATIENCE_S)
            await wait_until(lambda: world.sessions[0].num_requests == 0)

    for is_remote in (False, True):
        run(main(is_remote))


def test_what_was_not_admitted_is_not_sent() -> None:
    """The engine process would drop it, so nobody would ever answer."""

    async def main() -> None:
        async with connected() as world:
            runner = world.remote[0].slot.open_model.runner  # type: ignore[union-attr]
            with pytest.raises(LookupError):
                await runner.run(number_inputs(["text"]), InputOptions())

    run(main())


def test_a_failure_names_the_input_that_caused_it() -> None:
    async def main() -> None:
        async with connected("fail_on=poison") as world:
            with pytest.raises(BackendFailed, match=r"input 1 .*poison"):
                await world.remote[0].embed(["fine", "poison", "fine too"])
            assert (await world.remote[0].embed(["fine"]))[1] == 4

    run(main())


def test_queued_items_of_a_cancelled_request_are_skipped() -> None:
    async def main() -> None:
        async with connected("delay_s=0.1", batch_size=1) as world:
            task = asyncio.ensure_future(world.remote[0].embed([f"text {n}" for n in range(20)]))
            await wait_until(lambda: world.sessions[0].num_requests == 1)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            await wait_until(lambda: world.engine.status().worker.num_skipped_items >= 15)
            await wait_until(lambda: world.engine.status().num_items == 0)

    run(main())


def test_a_late_request_gets_the_error_of_its_deadline() -> None:
    async def main() -> None:
        async with connected("delay_s=0.2", batch_size=1) as world:
            with request_options(timeout_s=0.05), pytest.raises(DeadlineExceeded):
                await world.remote[0].embed([f"text {n}" for n in range(20)])
            assert world.remote[0].status().num_timed_out_requests == 1
            await wait_until(lambda: world.engine.status().worker.num_skipped_items >= 15)

    run(main())


def test_limits_hold_for_all_front_ends_together() -> None:
    async def main() -> None:
        async with connected("delay_s=0.3", num_front_ends=2, batch_size=1, max_queue_items=4) as world:
            tasks = [asyncio.ensure_future(each.embed([f"{n}"])) for n in range(4) for each in world.remote]
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(result) for result in results].count(Overloaded) == 4
            await wait_until(lambda: world.engine.status().num_items == 0)
            await world.service.collect_reports()
            assert world.engine.status().num_refused_requests == 4
            assert (await world.remote[0].embed(["room again"]))[1] == 10

    run(main())


def test_what_was_refused_is_not_computed() -> None:
    async def main() -> None:
        async with connected("delay_s=0.1", num_front_ends=2, batch_size=1, max_queue_items=2) as world:
            tasks = [asyncio.ensure_future(each.embed(["ab", "cd"])) for each in world.remote]
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(result) for result in results].count(Overloaded) == 1
            assert world.engine.status().worker.num_items == 2

    run(main())


def test_flows_reach_the_queue_of_the_engine_process() -> None:
    """A query of another client passes the bulk work of a first one, though one front end sends both."""

    async def main() -> None:
        async with connected("delay_s=0.02", batch_size=1) as world:
            with request_options(client="a", lane="bulk"):
                bulk = asyncio.ensure_future(world.remote[0].embed([f"text {n}" for n in range(30)]))
            await wait_until(lambda: world.sessions[0].num_requests == 1)
            with request_options(client="b", lane="interactive"):
                await world.remote[0].embed(["query"])
            assert not bulk.done()
            await bulk

    run(main())


def test_stages_of_a_request_are_those_of_the_engine_process() -> None:
    async def main() -> None:
        async with connected("delay_s=0.05") as world:
            stages = RequestStages()
            set_request(RequestContext(stages=stages))
            await world.remote[0].embed(["text"])
            seconds = stages.measure()
            assert {"tokenize", "queue", "batch", "forward", "wake"} <= seconds.keys()
            assert seconds["batch"] >= 0.05

    run(main())


def test_counters_of_front_ends_are_summed_also_after_one_has_ended() -> None:
    async def main() -> None:
        async with connected(num_front_ends=2) as world:
            for remote in world.remote:
                await remote.embed(["text"])
            await world.service.collect_reports()
            assert sum(world.engine.status().histograms["encode_s"].counts) == 2
            assert world.engine.status().worker.num_items == 2
            world.clients[1].link.close()
            await wait_until(lambda: len(world.lost) == 1)
            await world.service.collect_reports()
            assert sum(world.engine.status().histograms["encode_s"].counts) == 2

    run(main())


def test_each_front_end_caches_in_its_share_of_the_memory_and_hits_are_summed() -> None:
    async def main() -> None:
        async with connected(num_front_ends=2, vector_memory_cache_mb=3) as world:
            assert [each.engine_args.vector_memory_cache_mb for each in world.remote] == [2, 2]
            for remote in world.remote:
                for _ in range(3):
                    await remote.embed(["text"])
            await world.service.collect_reports()
            cache = world.engine.status().cache
            assert (cache.num_misses, cache.num_memory_hits) == (2, 4)
            memory_bytes = cache.memory_bytes
            world.clients[1].link.close()
            await wait_until(lambda: len(world.lost) == 1)
            await world.service.collect_reports()
            cache = world.engine.status().cache
            assert (cache.num_misses, cache.num_memory_hits) == (2, 4)
            assert cache.memory_bytes == memory_bytes / 2
            assert world.engine.status().worker.num_items == 2

    run(main())


def test_work_of_a_front_end_that_has_ended_is_dropped_and_its_room_is_free() -> None:
    async def main() -> None:
        async with connected("delay_s=0.1", num_front_ends=2, batch_size=1, max_queue_items=20) as world:
            task = asyncio.ensure_future(world.remote[0].embed([f"text {n}" for n in range(20)]))
            await wait_until(lambda: world.sessions[0].num_requests == 1)
            world.clients[0].link.close()
            await wait_until(lambda: world.lost == [world.sessions[0]])
            assert world.engine.status().num_items == 0
            assert (await world.remote[1].embed(["text"]))[1] == 4
            assert world.engine.status().worker.num_skipped_items >= 15
            with pytest.raises(EngineNotReady, match="engine process has ended"):
                await task

    run(main())


def test_requests_that_wait_for_an_engine_process_that_has_ended_get_its_error() -> None:
    async def main() -> None:
        async with connected("delay_s=0.3") as world:
            task = asyncio.ensure_future(world.remote[0].embed(["text"]))
            await wait_until(lambda: world.sessions[0].num_requests == 1)
            world.sessions[0].link.close()
            with pytest.raises(EngineNotReady, match="engine process has ended"):
                await task
            with pytest.raises(EngineNotReady):
                await world.remote[0].embed(["text"])
            assert not world.remote[0].is_running

    run(main())


def test_a_stop_fails_what_is_not_finished_within_its_timeout() -> None:
    async def main() -> None:
        async with connected("delay_s=0.2", batch_size=1) as world:
            task = asyncio.ensure_future(world.remote[0].embed([f"text {n}" for n in range(20)]))
            await wait_until(lambda: world.sessions[0].num_requests == 1)
            await world.remote[0].astop(drain_timeout_s=0)
            with pytest.raises(EngineNotReady, match="shutting down"):
                await task
            await wait_until(lambda: world.engine.status().worker.num_skipped_items >= 15)

    run(main())


def test_a_stop_waits_for_what_is_finished_in_time() -> None:
    async def main() -> None:
        async with connected("delay_s=0.2") as world:
            task = asyncio.ensure_future(world.remote[0].embed(["text"]))
            await wait_until(lambda: world.sessions[0].num_requests == 1)
            await world.remote[0].astop()
            assert (await task)[1] == 4

    run(main())
