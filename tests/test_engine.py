from __future__ import annotations

import asyncio
import gc
import threading
import traceback
import warnings
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import pytest

from infinity_emb import engine as engine_module
from infinity_emb.backends import fake
from infinity_emb.backends.base import Batch, LoadedModel, TokenIds
from infinity_emb.config import EngineArgs
from infinity_emb.engine import TEXTS_PER_CHUNK, AsyncEmbeddingEngine
from infinity_emb.errors import (
    BackendFailed,
    BadInput,
    EngineNotReady,
    InputTooLong,
    MatryoshkaDimError,
    ModelNotDeployedError,
    Overloaded,
    StartupError,
)

# Everything below is waited for by an event; a wait that takes this long has failed.
PATIENCE_S = 30.0
T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(coroutine, PATIENCE_S))


def fake_engine(faults: str = "", **options: Any) -> AsyncEmbeddingEngine:
    """Every value of a vector is the number of characters of its text."""
    args = EngineArgs(model_name_or_path=f"debug?{faults}", engine="debugengine", **options)
    return AsyncEmbeddingEngine.from_args(args)


def lengths_of(vectors: list[np.ndarray]) -> list[int]:
    return [int(vector[0]) for vector in vectors]


@dataclass
class GatedBackend:
    """The fake backend behind a gate, with a list of the texts that reached it."""

    backend: Any
    is_reached: threading.Event = field(default_factory=threading.Event)
    is_open: threading.Event = field(default_factory=threading.Event)
    seen: list[str] = field(default_factory=list)
    num_in_flight = 1
    shares_device = False

    def prepare_thread(self) -> None:
        pass

    def launch(self, batch: Batch) -> Any:
        self.seen += fake._decode(batch)
        self.is_reached.set()
        assert self.is_open.wait(PATIENCE_S)
        return self.backend.launch(batch)

    async def wait_until_reached(self) -> None:
        assert await asyncio.to_thread(self.is_reached.wait, PATIENCE_S)


@dataclass
class GatedTokenizer:
    """The fake tokenizer, which waits at a gate for texts that start with `slow`."""

    is_reached: threading.Event = field(default_factory=threading.Event)
    is_open: threading.Event = field(default_factory=threading.Event)

    def __call__(self, texts: list[str], *, truncate: bool) -> list[TokenIds]:
        if texts[0].startswith("slow"):
            self.is_reached.set()
            assert self.is_open.wait(PATIENCE_S)
        return fake.tokenize(texts, truncate=truncate)


World = Callable[..., tuple[AsyncEmbeddingEngine, GatedBackend]]


@pytest.fixture
def gated(monkeypatch: pytest.MonkeyPatch) -> World:
    """Makes an engine whose device is behind a gate."""

    def make(
        faults: str = "", *, tokenize: Any = fake.tokenize, **options: Any
    ) -> tuple[AsyncEmbeddingEngine, GatedBackend]:
        backends: list[GatedBackend] = []

        def load(args: EngineArgs) -> LoadedModel:
            model = fake.load_model(args)
            backends.append(GatedBackend(model.replicas[0]))
            return replace(model, replicas=list(backends), tokenize=tokenize)

        monkeypatch.setattr(engine_module, "load_model", load)
        return fake_engine(faults, **options), backends[0]

    return make


async def turns(number: int = 5) -> None:
    """Let everything that can run on this loop run."""
    for _ in range(number):
        await asyncio.sleep(0)


# Answers


def test_vectors_come_in_the_order_of_the_texts() -> None:
    async def main() -> None:
        async with fake_engine() as engine:
            vectors, num_tokens = await engine.embed(["four", "a", "seventh"])
            assert lengths_of(vectors) == [4, 1, 7]
            assert num_tokens == 12
            assert all(vector.shape == (13,) and vector.dtype == np.float32 for vector in vectors)

    run(main())


def test_duplicates_are_computed_once_and_counted_each_time() -> None:
    async def main() -> None:
        async with fake_engine() as engine:
            vectors, num_tokens = await engine.embed(["aa", "b", "aa", "b", "aa"])
            assert lengths_of(vectors) == [2, 1, 2, 1, 2]
            assert num_tokens == 8
            assert (engine.stats.num_items, engine.stats.num_tokens) == (2, 3)

    run(main())


def test_vectors_of_duplicates_do_not_share_memory() -> None:
    """Changing one of them in place, as callers who normalise do, changed the others too."""

    async def main() -> None:
        async with fake_engine() as engine:
            vectors, _ = await engine.embed(["aa", "aa"])
            vectors[0] *= 0
            assert lengths_of(vectors) == [0, 2]

    run(main())


def test_an_empty_text_has_a_vector_where_the_tokenizer_allows_it() -> None:
    async def main() -> None:
        async with fake_engine() as engine:
            vectors, num_tokens = await engine.embed([""])
            assert (lengths_of(vectors), num_tokens) == ([0], 0)

    run(main())


@pytest.mark.parametrize("num_texts", [TEXTS_PER_CHUNK, TEXTS_PER_CHUNK + 1, 5 * TEXTS_PER_CHUNK + 3])
def test_a_request_of_several_chunks_keeps_its_order(num_texts: int) -> None:
    """More characters than are tokenized on the event loop, so that chunks overtake each other."""
    texts = [f"{number:050}" + "x" * (number % 97) for number in range(num_texts)]

    async def main() -> None:
        async with fake_engine(max_batch_tokens=700, device_id=(0, 1), tokenizer_threads=4) as engine:
            vectors, num_tokens = await engine.embed(texts)
            assert lengths_of(vectors) == [len(text) for text in texts]
            assert num_tokens == sum(map(len, texts))
            assert engine.stats.num_batches > 1

    run(main())


def test_two_hundred_requests_at_once_each_get_their_own_rows() -> None:
    requests = [
        ["x" * (1 + (number * 7 + row) % 90) for row in range(1 + number % 9)] for number in range(200)
    ]

    async def main() -> None:
        async with fake_engine(max_batch_tokens=500, device_id=(0, 1)) as engine:
            answers = await asyncio.gather(*(engine.embed(texts) for texts in requests))
            for texts, (vectors, num_tokens) in zip(requests, answers, strict=True):
                assert lengths_of(vectors) == [len(text) for text in texts]
                assert num_tokens == sum(map(len, texts))
            assert engine.overload_status() == (0, 0, 0)

    run(main())


@pytest.mark.parametrize("dim", [1, 5, 13])
def test_fewer_dimensions_are_scaled_to_length_one(dim: int) -> None:
    async def main() -> None:
        async with fake_engine() as engine:
            vectors, _ = await engine.embed(["four", "seventh"], matryoshka_dim=dim)
            assert [vector.shape for vector in vectors] == [(dim,)] * 2
            if dim < 13:
                assert np.allclose([np.linalg.norm(vector) for vector in vectors], 1)

    run(main())


def test_a_binary_embedding_dtype_gives_bits() -> None:
    async def main() -> None:
        async with fake_engine(embedding_dtype="ubinary") as engine:
            vectors, _ = await engine.embed(["", "a"])
            assert [vector.tolist() for vector in vectors] == [[0, 0], [255, 248]]

    run(main())


def test_a_text_that_is_too_long_is_cut_or_refused_as_asked() -> None:
    long = "x" * (fake.MAX_TOKENS + 1)

    async def main() -> None:
        async with fake_engine() as engine:
            vectors, num_tokens = await engine.embed([long])
            assert (lengths_of(vectors), num_tokens) == ([fake.MAX_TOKENS], fake.MAX_TOKENS)
            with pytest.raises(InputTooLong, match=r"input 1 has 8193 tokens, the limit is 8192"):
                await engine.embed(["a", long], truncate=False)
            assert engine.overload_status() == (0, 0, 0)

    run(main())


@pytest.mark.parametrize("before", [["a"], ["a"] * 5, [f"text {number}" for number in range(200)]])
def test_a_refused_text_is_named_by_its_place_in_the_request(before: list[str]) -> None:
    """Not by its place among the distinct texts, or in the chunk that was tokenized."""

    async def main() -> None:
        async with fake_engine() as engine:
            with pytest.raises(InputTooLong, match=rf"^input {len(before)} has 8193 tokens") as raised:
                await engine.embed([*before, "x" * (fake.MAX_TOKENS + 1)], truncate=False)
            assert raised.value.position == len(before)

    run(main())


# Bad input


@pytest.mark.parametrize(
    "sentences", [[], (), "one text", None, 5, {"a"}, ["a", 5], [None], b"bytes", [["a"]]]
)
def test_what_is_no_list_of_texts_is_refused(sentences: Any) -> None:
    async def main() -> None:
        async with fake_engine() as engine:
            with pytest.raises(BadInput, match="sentences"):
                await engine.embed(sentences)

    run(main())


@pytest.mark.parametrize("dim", [-1, 0, 14])
def test_dimensions_outside_the_model_are_refused(dim: int) -> None:
    async def main() -> None:
        async with fake_engine() as engine:
            with pytest.raises(MatryoshkaDimError, match=rf"dimensions={dim} .* between 1 and 13"):
                await engine.embed(["a"], matryoshka_dim=dim)

    run(main())


@pytest.mark.parametrize(
    ("task", "arguments"),
    [
        ("rerank", {"query": "q", "docs": ["d"], "raw_scores": True, "top_n": 1}),
        ("classify", {"sentences": ["a"], "raw_scores": True}),
        ("image_embed", {"images": ["i"], "matryoshka_dim": 2}),
        ("audio_embed", {"audios": ["a"], "matryoshka_dim": 2}),
    ],
)
def test_a_task_that_the_model_cannot_do_is_refused(task: str, arguments: dict[str, Any]) -> None:
    async def main() -> None:
        async with fake_engine(served_model_name="mine") as engine:
            with pytest.raises(ModelNotDeployedError, match=f"'mine' does not support '{task}'.* embed"):
                await getattr(engine, task)(**arguments)

    run(main())


# What the device does to a request


def test_a_failing_text_fails_its_request_alone() -> None:
    async def main() -> None:
        async with fake_engine("fail_on=poison") as engine:
            requests = [engine.embed([f"text {number}"]) for number in range(9)]
            answers = await asyncio.gather(
                *requests, engine.embed(["fine", "poison"]), return_exceptions=True
            )
            assert isinstance(answers.pop(), BackendFailed)
            assert all(lengths_of(vectors) == [6] for vectors, _ in answers)  # type: ignore[misc]
            assert engine.is_running

    run(main())


@pytest.mark.parametrize("fault", ["fail_on", "wrong_count_on", "nan_on"])
def test_room_is_given_back_after_a_failure(fault: str) -> None:
    async def main() -> None:
        async with fake_engine(f"{fault}=poison", max_queue_items=2) as engine:
            for _ in range(3):
                with pytest.raises(BackendFailed):
                    await engine.embed(["poison", "fine"])
            assert lengths_of((await engine.embed(["a", "bb"]))[0]) == [1, 2]

    run(main())


def test_a_dead_device_thread_fails_what_waits_and_refuses_what_comes() -> None:
    async def main() -> None:
        async with fake_engine("die_on=poison") as engine:
            with pytest.raises(EngineNotReady, match="device thread died"):
                await engine.embed(["poison"])
            assert engine.is_dead
            assert not engine.is_running
            with pytest.raises(EngineNotReady):
                await engine.embed(["fine"])

    run(main())


def test_an_error_that_ends_many_requests_has_a_traceback_of_each_of_its_own(gated: World) -> None:
    """All of them raised one exception object, whose traceback grew with every request."""
    engine, backend = gated("die_on=poison")

    async def main() -> None:
        async with engine:
            first = asyncio.create_task(engine.embed(["poison"]))
            await backend.wait_until_reached()
            others = [asyncio.create_task(engine.embed([f"text {number}"])) for number in range(50)]
            await turns()
            backend.is_open.set()
            errors = await asyncio.gather(first, *others, return_exceptions=True)
            assert all(isinstance(error, EngineNotReady) for error in errors)
            depths = [len(traceback.extract_tb(error.__traceback__)) for error in errors]  # type: ignore[union-attr]
            assert max(depths) <= 5

    run(main())


# Admission


def test_a_request_that_does_not_fit_into_the_queue_is_refused_whole(gated: World) -> None:
    engine, backend = gated(max_queue_items=3)

    async def main() -> None:
        async with engine:
            waiting = asyncio.create_task(engine.embed(["a", "a"]))
            await backend.wait_until_reached()
            assert not engine.is_overloaded()
            with pytest.raises(Overloaded, match="2 of 3 inputs wait"):
                await engine.embed(["b", "c"])
            also_waiting = asyncio.create_task(engine.embed(["d"]))
            await turns()
            assert engine.is_overloaded()
            with pytest.raises(Overloaded):
                await engine.embed(["e"])
            assert engine.overload_status().results_absolute == 2
            backend.is_open.set()
            await asyncio.gather(waiting, also_waiting)
            assert not engine.is_overloaded()
            await engine.embed(["b", "c", "e"])

    run(main())
    assert backend.seen == ["a", "d", "b", "c", "e"]


def test_a_request_that_could_never_fit_is_bad_input() -> None:
    async def main() -> None:
        async with fake_engine(max_queue_items=3) as engine:
            with pytest.raises(BadInput, match="4 inputs, more than the 3"):
                await engine.embed(["a"] * 4)

    run(main())


def test_too_many_waiting_tokens_refuse_the_next_request(gated: World) -> None:
    engine, backend = gated(max_queue_tokens=10, batch_size=1)

    async def main() -> None:
        async with engine:
            requests = [asyncio.create_task(engine.embed(["on the device"]))]
            await backend.wait_until_reached()
            requests.append(asyncio.create_task(engine.embed(["ten tokens"])))
            await turns()
            assert engine.num_waiting_tokens == 10
            with pytest.raises(Overloaded):
                await engine.embed(["a"])
            backend.is_open.set()
            await asyncio.gather(*requests)
            await engine.embed(["a"])

    run(main())


def test_the_status_tells_how_full_the_queue_is(gated: World) -> None:
    engine, backend = gated(max_queue_items=8, batch_size=1)

    async def main() -> None:
        async with engine:
            request = asyncio.create_task(engine.embed(["a", "b", "c"]))
            await backend.wait_until_reached()
            assert engine.overload_status() == (2 / 8, 2, 1)
            backend.is_open.set()
            await request

    run(main())


# Cancelling


def test_a_cancelled_request_takes_its_texts_with_it_and_gives_its_room_back(gated: World) -> None:
    engine, backend = gated(max_queue_items=4, batch_size=1)

    async def main() -> None:
        async with engine:
            first = asyncio.create_task(engine.embed(["first"]))
            await backend.wait_until_reached()
            cancelled = asyncio.create_task(engine.embed(["x", "y", "z"]))
            await turns()
            with pytest.raises(Overloaded):
                await engine.embed(["last"])
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            last = asyncio.create_task(engine.embed(["last"]))
            await turns()
            backend.is_open.set()
            await asyncio.gather(first, last)
            assert engine.overload_status() == (0, 0, 0)

    run(main())
    assert backend.seen == ["first", "last"]


def test_a_request_that_is_cancelled_while_it_is_tokenized_never_reaches_the_device(gated: World) -> None:
    tokenize = GatedTokenizer()
    engine, backend = gated(tokenize=tokenize)
    backend.is_open.set()

    async def main() -> None:
        async with engine:
            request = asyncio.create_task(engine.embed(["slow" + "x" * 2000]))
            assert await asyncio.to_thread(tokenize.is_reached.wait, PATIENCE_S)
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
            tokenize.is_open.set()
            await engine.embed(["other"])

    run(main())
    assert backend.seen == ["other"]


def test_when_one_chunk_is_refused_the_others_never_reach_the_device(gated: World) -> None:
    engine, backend = gated(max_batch_tokens=10)
    backend.is_open.set()
    texts = ["x" * 9000, *(f"{number:040}" for number in range(3 * TEXTS_PER_CHUNK))]

    async def main() -> None:
        async with engine:
            with pytest.raises(InputTooLong):
                await engine.embed(texts, truncate=False)
            seen = len(backend.seen)
            await engine.embed(["other"])
            assert backend.seen[seen:][-1] == "other"
            assert len(backend.seen) - seen <= 2

    run(main())


# Starting and stopping


def test_an_engine_that_is_not_started_refuses() -> None:
    engine = fake_engine()

    assert not engine.is_running
    assert not engine.is_dead
    with pytest.raises(EngineNotReady, match="not started"):
        run(engine.embed(["a"]))
    run(engine.astop())


def test_a_running_engine_cannot_be_started_again() -> None:
    async def main() -> None:
        async with fake_engine() as engine:
            with pytest.raises(EngineNotReady):
                await engine.astart()
            assert engine.is_running
            await engine.embed(["a"])

    run(main())


def test_an_engine_can_be_stopped_and_started_again_on_other_event_loops() -> None:
    engine = fake_engine()

    async def use() -> None:
        async with engine:
            assert lengths_of((await engine.embed(["aa", "b"]))[0]) == [2, 1]
        assert not engine.is_running
        with pytest.raises(EngineNotReady):
            await engine.embed(["a"])

    for _ in range(3):
        run(use())
    assert engine.stats.num_items == 6


def test_an_engine_whose_thread_died_can_be_started_again() -> None:
    engine = fake_engine("die_on=poison")

    async def main() -> None:
        async with engine:
            with pytest.raises(EngineNotReady):
                await engine.embed(["poison"])
        async with engine:
            assert engine.is_running
            assert not engine.is_dead
            await engine.embed(["fine"])

    run(main())


def test_an_engine_outlives_the_event_loop_that_started_it() -> None:
    engine = fake_engine()
    run(engine.astart())
    assert lengths_of(run(engine.embed(["aa"]))[0]) == [2]
    run(engine.astop())


def test_stopping_finishes_the_requests_that_wait(gated: World) -> None:
    engine, backend = gated(batch_size=2)

    async def main() -> None:
        await engine.astart()
        requests = [asyncio.create_task(engine.embed([f"text {number}", "x"])) for number in range(20)]
        await backend.wait_until_reached()
        stopping = asyncio.create_task(engine.astop())
        await turns()
        assert not engine.is_running
        with pytest.raises(EngineNotReady, match="shutting down"):
            await engine.embed(["late"])
        backend.is_open.set()
        await stopping
        for number, request in enumerate(requests):
            assert request.done()
            assert lengths_of(request.result()[0]) == [len(f"text {number}"), 1]

    run(main())
    assert "late" not in backend.seen


def test_stopping_finishes_requests_that_are_still_tokenized(gated: World) -> None:
    """The queue was closed at once, and what came out of the tokenizer afterwards was refused."""
    tokenize = GatedTokenizer()
    engine, backend = gated(tokenize=tokenize)

    async def main() -> None:
        await engine.astart()
        slow = asyncio.create_task(engine.embed(["slow" + "x" * 2000]))
        assert await asyncio.to_thread(tokenize.is_reached.wait, PATIENCE_S)
        quick = asyncio.create_task(engine.embed(["quick"]))
        await backend.wait_until_reached()
        stopping = asyncio.create_task(engine.astop())
        await turns()
        backend.is_open.set()
        assert lengths_of((await quick)[0]) == [5]
        tokenize.is_open.set()
        await stopping
        assert lengths_of((await slow)[0]) == [2004]

    run(main())


def test_stopping_finishes_a_request_that_has_just_been_accepted() -> None:
    engine = fake_engine()

    async def main() -> None:
        await engine.astart()
        request = asyncio.create_task(engine.embed(["a", "bb"]))
        await asyncio.sleep(0)
        await engine.astop()
        assert lengths_of((await request)[0]) == [1, 2]

    run(main())


def test_at_the_deadline_waiting_requests_fail_and_a_batch_on_the_device_gets_a_moment_more(
    gated: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "BATCH_GRACE_S", PATIENCE_S)
    engine, backend = gated(batch_size=1)

    async def main() -> None:
        await engine.astart()
        on_the_device = asyncio.create_task(engine.embed(["aa"]))
        await backend.wait_until_reached()
        waiting = asyncio.create_task(engine.embed(["b"]))
        await turns()
        stopping = asyncio.create_task(engine.astop(drain_timeout_s=0))
        with pytest.raises(EngineNotReady, match="not finished in time"):
            await waiting
        backend.is_open.set()
        assert lengths_of((await on_the_device)[0]) == [2]
        await stopping

    run(main())
    assert backend.seen == ["aa"]


@pytest.mark.parametrize("also_waiting", [0, 5])
def test_a_device_that_hangs_does_not_keep_its_request_from_failing(
    gated: World, also_waiting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request whose batch hung on the device was never answered."""
    monkeypatch.setattr(engine_module, "BATCH_GRACE_S", 0)
    engine, backend = gated(batch_size=1)

    async def main() -> None:
        await engine.astart()
        requests = [asyncio.create_task(engine.embed([f"text {n}"])) for n in range(1 + also_waiting)]
        await backend.wait_until_reached()
        await engine.astop(drain_timeout_s=0)
        errors = await asyncio.gather(*requests, return_exceptions=True)
        assert all(isinstance(error, EngineNotReady) for error in errors)
        assert engine.overload_status() == (0, 0, 0)
        with pytest.raises(EngineNotReady, match="still running"):
            await engine.astart()
        backend.is_open.set()

    run(main())
    assert backend.seen == ["text 0"]


def test_at_the_deadline_a_request_that_is_still_tokenized_is_refused(gated: World) -> None:
    tokenize = GatedTokenizer()
    engine, backend = gated(tokenize=tokenize)

    async def main() -> None:
        await engine.astart()
        request = asyncio.create_task(engine.embed(["slow" + "x" * 2000]))
        assert await asyncio.to_thread(tokenize.is_reached.wait, PATIENCE_S)
        await engine.astop(drain_timeout_s=0)
        tokenize.is_open.set()
        with pytest.raises(EngineNotReady):
            await request

    run(main())
    assert backend.seen == []


def test_a_request_that_is_cancelled_during_the_stop_takes_its_texts_with_it(gated: World) -> None:
    engine, backend = gated(batch_size=1)

    async def main() -> None:
        await engine.astart()
        request = asyncio.create_task(engine.embed(["a", "b", "c"]))
        await backend.wait_until_reached()
        stopping = asyncio.create_task(engine.astop())
        await turns()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        backend.is_open.set()
        await stopping

    run(main())
    assert backend.seen == ["a"]


def test_a_stop_that_is_cancelled_fails_what_waits(gated: World) -> None:
    engine, backend = gated()

    async def main() -> None:
        await engine.astart()
        request = asyncio.create_task(engine.embed(["a"]))
        await backend.wait_until_reached()
        stopping = asyncio.create_task(engine.astop())
        await turns()
        stopping.cancel()
        with pytest.raises(EngineNotReady):
            await request
        backend.is_open.set()

    run(main())


def test_stopping_twice_is_harmless() -> None:
    async def main() -> None:
        engine = fake_engine()
        await engine.astart()
        await asyncio.gather(engine.astop(), engine.astop())
        await engine.astop()

    run(main())


def test_no_thread_is_left_after_the_stop() -> None:
    async def main() -> None:
        async with fake_engine(device_id=(0, 1)) as engine:
            await engine.embed(["x" * 2000])

    before = set(threading.enumerate())
    run(main())
    for thread in set(threading.enumerate()) - before:
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), thread.name


def test_an_event_loop_that_ends_with_a_request_on_the_device_disturbs_nobody(gated: World) -> None:
    engine, backend = gated()

    async def leave() -> None:
        await engine.astart()
        asyncio.create_task(engine.embed(["left"]))  # noqa: RUF006 - the loop ends before it does
        await backend.wait_until_reached()

    async def use() -> None:
        assert lengths_of((await engine.embed(["aa"]))[0]) == [2]
        await engine.astop()

    run(leave())
    backend.is_open.set()
    run(use())


def test_an_event_loop_that_is_closed_under_a_request_does_not_hurt_the_device_thread(gated: World) -> None:
    engine, backend = gated()
    loop = asyncio.new_event_loop()
    loop.run_until_complete(engine.astart())
    left = loop.create_task(engine.embed(["left"]))
    loop.run_until_complete(backend.wait_until_reached())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    backend.is_open.set()

    assert lengths_of(run(engine.embed(["aa"]))[0]) == [2]
    assert not left.done()
    del left
    gc.collect()
    run(engine.astop())


# Making one


def test_the_constructor_warns_and_takes_the_same_options() -> None:
    with pytest.warns(DeprecationWarning, match="from_args"):
        engine = AsyncEmbeddingEngine("debug", engine="debugengine", batch_size=7)
    assert engine.engine_args == EngineArgs(model_name_or_path="debug", engine="debugengine", batch_size=7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AsyncEmbeddingEngine.from_args(engine.engine_args)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_embedding_dtypes_that_need_calibration_are_refused_before_loading(dtype: str) -> None:
    with pytest.raises(StartupError, match=f"--embedding-dtype {dtype}"):
        fake_engine(embedding_dtype=dtype)


def test_an_engine_tells_what_it_is() -> None:
    engine = fake_engine(served_model_name="mine", max_batch_tokens=77)

    assert repr(engine) == "AsyncEmbeddingEngine('mine', running=False)"
    assert engine.capabilities == {"embed"}
    assert engine.info.embedding_dimension == 13
    assert engine.max_batch_tokens == 77
    assert fake_engine().max_batch_tokens > 77


# Progress


@dataclass
class CountingBar:
    is_shown = True
    num_done: int = 0
    is_closed: bool = False

    def update(self, num_items: int) -> None:
        self.num_done += num_items

    def close(self) -> None:
        self.is_closed = True


@pytest.mark.parametrize(("last", "is_answered"), [("fine", True), ("poison", False)])
def test_a_progress_bar_counts_the_texts_and_is_closed_in_any_case(
    last: str, is_answered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bar = CountingBar()
    monkeypatch.setattr(engine_module, "open_progress_bar", lambda num_items, description: bar)

    async def main() -> None:
        async with fake_engine("fail_on=poison") as engine:
            await asyncio.gather(engine.embed(["a", "b", "a", last]), return_exceptions=True)

    run(main())
    assert bar.is_closed
    assert (bar.num_done == 3) is is_answered
