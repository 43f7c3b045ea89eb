from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import gc
import inspect
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.errors import BackendFailed, EngineNotReady, ModelNotDeployedError, UnknownModel
from infinity_emb.sync_engine.array import SyncEngineArray
from tests.support.event_loop import PATIENCE_S

TASKS = ["embed", "encode", "encode_passages", "rerank", "classify", "image_embed", "audio_embed"]


def fake_args(name: str = "first", faults: str = "", **options: Any) -> EngineArgs:
    return EngineArgs(
        model_name_or_path=f"debug?{faults}", engine="debugengine", served_model_name=name, **options
    )


@pytest.fixture
def array() -> Iterator[SyncEngineArray]:
    with SyncEngineArray([fake_args("first", served_model_aliases=("one",)), fake_args("second")]) as array:
        yield array


def new_threads(before: set[threading.Thread]) -> list[threading.Thread]:
    """Ours that were started since and have not ended."""
    return [
        each for each in threading.enumerate() if each not in before and each.name.startswith("infinity-")
    ]


def wait_for_end_of(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), f"{thread.name} is left"


def test_a_task_returns_a_future(array: SyncEngineArray) -> None:
    future = array.embed(model="first", sentences=["aa", "b"])

    assert isinstance(future, Future)
    vectors, num_tokens = future.result(PATIENCE_S)
    assert [float(vector[0]) for vector in vectors] == [2.0, 1.0]
    assert num_tokens == 3


def test_engines_are_found_by_name_alias_and_position(array: SyncEngineArray) -> None:
    assert array["first"] is array["one"] is array[0]
    assert list(array) == [array["first"], array["second"]]
    array.embed(model="one", sentences=["a"]).result(PATIENCE_S)
    array.embed(model=0, sentences=["a"]).result(PATIENCE_S)
    assert [engine.status().worker.num_items for engine in array] == [2, 0]


def test_an_unknown_model_is_refused_at_once_and_a_bad_task_by_its_future(array: SyncEngineArray) -> None:
    with pytest.raises(UnknownModel):
        array.embed(model="third", sentences=["a"])
    with pytest.raises(ModelNotDeployedError):
        array.classify(model="first", sentences=["a"]).result(PATIENCE_S)


def test_a_failure_is_raised_by_its_future_only() -> None:
    with SyncEngineArray.from_args([fake_args(faults="fail_on=poison")]) as array:
        futures = [array.embed(model=0, sentences=[text]) for text in ("fine", "poison", "fine")]
        assert isinstance(futures[1].exception(PATIENCE_S), BackendFailed)
        assert [futures[number].exception(PATIENCE_S) for number in (0, 2)] == [None, None]


@pytest.mark.parametrize("task", TASKS)
def test_a_task_takes_the_arguments_of_the_engine_and_a_model(
    task: str, array: SyncEngineArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = list(inspect.signature(getattr(AsyncEmbeddingEngine, task)).parameters)[1:]

    async def record(**arguments: Any) -> dict[str, Any]:
        return arguments

    monkeypatch.setattr(array["second"], task, record)
    arguments = {name: f"value of {name}" for name in names}
    assert getattr(array, task)(model="second", **arguments).result(PATIENCE_S) == arguments


def test_futures_of_many_threads_get_their_own_vectors(array: SyncEngineArray) -> None:
    def embed(length: int) -> float:
        vectors, _ = array.embed(model="first", sentences=["x" * length]).result(PATIENCE_S)
        return float(vectors[0][0])

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert list(threads.map(embed, range(1, 200))) == list(range(1, 200))


def test_stopping_finishes_accepted_requests() -> None:
    array = SyncEngineArray([fake_args(faults="delay_s=0.002", batch_size=1)])
    futures = [array.embed(model=0, sentences=[f"text {number}"]) for number in range(20)]
    array.stop()

    assert all(future.done() for future in futures)
    assert [future.exception() for future in futures] == [None] * 20


def test_requests_that_are_not_finished_at_the_deadline_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    array = SyncEngineArray([fake_args(faults="delay_s=0.05", batch_size=1)])
    monkeypatch.setattr(array[0], "astop", functools.partial(array[0].astop, drain_timeout_s=0))
    futures = [array.embed(model=0, sentences=[f"text {number}"]) for number in range(100)]
    array.stop()

    assert isinstance(futures[-1].exception(PATIENCE_S), EngineNotReady)
    for future in futures:
        assert future.exception(PATIENCE_S) is None or isinstance(future.exception(), EngineNotReady)


def test_stopping_twice_is_harmless_and_a_stopped_array_refuses(array: SyncEngineArray) -> None:
    assert array.is_running
    array.stop()
    array.stop()

    assert not array.is_running
    with pytest.raises(EngineNotReady, match="stopped"):
        array.embed(model=0, sentences=["a"])


def test_several_threads_may_stop_an_array_at_once(array: SyncEngineArray) -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: array.stop(), range(4)))
    assert not array.is_running


def test_every_future_ends_when_others_submit_during_the_stop() -> None:
    """A task that was handed to the loop just behind its end was never run: its future hung."""
    for _ in range(10):
        array = SyncEngineArray([fake_args()])
        futures: list[Future[Any]] = []
        has_begun = threading.Event()

        def submit(
            array: SyncEngineArray = array, futures: list[Any] = futures, has_begun: Any = has_begun
        ) -> None:
            while True:
                try:
                    futures.append(array.embed(model=0, sentences=["a"]))
                except EngineNotReady:
                    return
                has_begun.set()

        threads = [threading.Thread(target=submit) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert has_begun.wait(PATIENCE_S)
        array.stop()
        wait_for_end_of(threads)
        for future in futures:
            assert future.exception(PATIENCE_S) is None or isinstance(future.exception(), EngineNotReady)


def test_a_stopped_array_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    with SyncEngineArray([fake_args("first"), fake_args("second", device_id=(0, 1))]) as array:
        array.embed(model="second", sentences=["x" * 2000]).result(PATIENCE_S)
        threads = new_threads(before)
        assert {thread.name for thread in threads} >= {
            "infinity-sync",
            "infinity-replica-0",
            "infinity-replica-1",
            "infinity-tokenizer_0",
        }
    wait_for_end_of(threads)


def test_a_collected_array_stops_itself() -> None:
    before = set(threading.enumerate())
    array = SyncEngineArray([fake_args()])
    array.embed(model=0, sentences=["a"]).result(PATIENCE_S)
    threads = new_threads(before)
    assert threads
    del array
    gc.collect()
    wait_for_end_of(threads)


def test_an_array_collected_by_its_own_thread_stops_itself() -> None:
    """The collector may run anywhere: waiting for the end there was waiting for oneself."""
    before = set(threading.enumerate())
    array = SyncEngineArray([fake_args()])
    threads = new_threads(before)
    loop_thread = array._thread

    async def collect() -> None:
        gc.collect()

    gc.disable()
    try:
        cycle: list[Any] = [array]
        cycle.append(cycle)
        del array, cycle
        loop_thread.submit(collect()).result(PATIENCE_S)
    finally:
        gc.enable()
    wait_for_end_of(threads)


def run_script(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


BEGIN = """
from infinity_emb import EngineArgs, SyncEngineArray
array = SyncEngineArray([EngineArgs(model_name_or_path="debug?delay_s=0.01", engine="debugengine")])
"""


def test_an_array_left_at_exit_stops_silently() -> None:
    """The stop needed a thread of an executor, which Python refuses at exit: a traceback on stderr."""
    ended = run_script(BEGIN + "print(array.embed(model=0, sentences=['a']).result()[1])")

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "1\n", "")


def test_requests_accepted_before_the_exit_are_finished() -> None:
    ended = run_script(
        BEGIN
        + "future = array.embed(model=0, sentences=['a'])\n"
        + "future.add_done_callback(lambda future: print(future.result()[1], flush=True))"
    )

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "1\n", "")


def test_an_array_can_be_used_next_to_an_event_loop() -> None:
    async def main() -> None:
        with SyncEngineArray([fake_args()]) as array:
            vectors, _ = await asyncio.wrap_future(array.embed(model=0, sentences=["aa"]))
            assert float(vectors[0][0]) == 2.0

    asyncio.run(main())


SLOW = """
import os, signal, sys, threading
from infinity_emb import EngineArgs, SyncEngineArray
args = EngineArgs(model_name_or_path="debug?delay_s=0.01", engine="debugengine", batch_size=1)
array = SyncEngineArray([args])
texts = [f"text {number}" for number in range(30_000)]  # minutes of work
"""


def test_ctrl_c_while_waiting_for_a_future_cancels_its_work() -> None:
    """The texts were computed to the end, and stopping waited for them."""
    ended = run_script(
        SLOW
        + "threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        + "try:\n"
        + "    array.embed(model=0, sentences=texts).result()\n"
        + "except KeyboardInterrupt:\n"
        + "    print('interrupted')\n"
        + "print(array.embed(model=0, sentences=['a']).result()[1])\n"
        + "array.stop()\n"
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "interrupted\n1\n", "")


def test_ctrl_c_inside_the_block_cancels_all_work() -> None:
    ended = run_script(
        SLOW
        + "try:\n"
        + "    with array:\n"
        + "        future = array.embed(model=0, sentences=texts)\n"
        + "        raise KeyboardInterrupt\n"
        + "except KeyboardInterrupt:\n"
        + "    print(future.cancelled())\n"
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "True\n", "")


def test_the_exit_does_not_wait_for_answers_that_nobody_reads() -> None:
    """The interpreter stayed for 37 s."""
    ended = run_script(SLOW + "future = array.embed(model=0, sentences=texts)")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_a_cancelled_future_wakes_those_who_wait_for_it(array: SyncEngineArray) -> None:
    async def forever() -> None:
        await asyncio.Event().wait()

    future = array._thread.submit(forever())
    assert future.cancel()
    assert concurrent.futures.wait([future], PATIENCE_S).done == {future}
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(PATIENCE_S)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_refuses_to_use_the_array_of_its_parent() -> None:
    """The future of the child was never done."""
    ended = run_script(
        BEGIN
        + "import os, warnings\n"
        + "warnings.simplefilter('ignore')\n"
        + "array.embed(model=0, sentences=['a']).result()\n"
        + "child = os.fork()\n"
        + "if not child:\n"
        + "    try:\n"
        + "        array.embed(model=0, sentences=['a'])\n"
        + "    except Exception as exc:\n"
        + "        print(type(exc).__name__, exc, array.is_running, flush=True)\n"
        + "    array.stop()\n"
        + "    raise SystemExit\n"
        + "assert os.waitpid(child, 0)[1] == 0\n"
        + "print(array.embed(model=0, sentences=['a']).result()[1])\n"
    )
    refused, parent = ended.stdout.splitlines()
    assert refused.startswith(
        "EngineNotReady this SyncEngineArray was created before this process was forked"
    )
    assert refused.endswith("False")
    assert (ended.returncode, parent, ended.stderr) == (0, "1", "")
