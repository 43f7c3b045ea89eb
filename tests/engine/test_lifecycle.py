"""Start and stop an engine for callers that overlap, in forked processes, and when Ctrl-C interrupts."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from typing import Any

import pytest

from infinity_emb import AsyncEngineArray
from infinity_emb.errors import EngineNotReady
from tests.support.event_loop import PATIENCE_S, run
from tests.support.fake_engines import fake_engine, read_vector_lengths

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


async def embed(engine: Any) -> list[int]:
    vectors, _ = await engine.embed(["aa", "b"])
    return read_vector_lengths(vectors)


def test_a_second_start_changes_nothing() -> None:
    """It raised EngineNotReady: a worker thread is still running."""

    async def main() -> None:
        engine = fake_engine()
        await engine.astart()
        await engine.astart()
        assert await embed(engine) == [2, 1]
        await engine.astop()
        assert not engine.is_running
        await engine.astart()
        assert await embed(engine) == [2, 1]
        await engine.astop()

    run(main())


def test_the_last_of_nested_blocks_stops_the_engine() -> None:
    async def main() -> None:
        engine = fake_engine()
        async with engine:
            async with engine:
                assert await embed(engine) == [2, 1]
            assert await embed(engine) == [2, 1]
        assert not engine.is_running

    run(main())


def test_a_block_leaves_an_engine_running_that_was_running_before() -> None:
    async def main() -> None:
        engine = fake_engine()
        await engine.astart()
        async with engine:
            pass
        assert await embed(engine) == [2, 1]
        await engine.astop()

    run(main())


def test_blocks_that_overlap_each_find_a_running_engine() -> None:
    async def main() -> None:
        engine = fake_engine("delay_s=0.001")

        async def use(pause_s: float) -> None:
            await asyncio.sleep(pause_s)
            async with engine:
                assert await embed(engine) == [2, 1]

        # Some begin while another ends.
        await asyncio.gather(*(use(0.002 * number) for number in range(20)))
        assert not engine.is_running

    run(main())


def test_an_array_can_be_entered_twice() -> None:
    async def main() -> None:
        array = AsyncEngineArray([fake_engine()])
        async with array:
            async with array:
                pass
            assert array.is_running()
        assert not array.is_running()

    run(main())


def test_a_start_that_fails_leaves_no_block_open(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        engine = fake_engine()
        with monkeypatch.context() as patch:
            patch.setattr(engine.slot, "start", lambda: (_ for _ in ()).throw(EngineNotReady("no")))
            with pytest.raises(EngineNotReady, match="no"):
                async with engine:
                    pass
        async with engine:
            pass
        assert not engine.is_running

    run(main())


def run_script(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


_FORKED = """
import asyncio, os
from infinity_emb import AsyncEmbeddingEngine, EngineArgs
from infinity_emb.errors import EngineNotReady
engine = AsyncEmbeddingEngine.from_args(EngineArgs(model_name_or_path="debug", engine="debugengine"))
loop = asyncio.new_event_loop()
{before}
child = os.fork()
if not child:
    async def use():
        async with engine:
            return (await engine.embed(["a"]))[1]
    try:
        print(asyncio.run(use()), flush=True)
    except EngineNotReady as exc:
        print(exc, flush=True)
    os._exit(0)  # without closing the event loop that the parent shares
assert os.waitpid(child, 0)[1] == 0
loop.run_until_complete(engine.astart())
print(loop.run_until_complete(engine.embed(["a"]))[1])
"""


@needs_fork
def test_a_fork_of_a_running_engine_refuses_to_be_used() -> None:
    """A request in the child waited for ever for threads that exist in its parent only."""
    ended = run_script(_FORKED.format(before="loop.run_until_complete(engine.astart())"))

    refused, parent = ended.stdout.splitlines()
    assert "before this process was forked" in refused
    assert "'spawn'" in refused
    assert (parent, ended.stderr, ended.returncode) == ("1", "", 0)


@needs_fork
def test_an_engine_that_was_loaded_before_a_fork_can_be_started_in_it() -> None:
    ended = run_script(_FORKED.format(before=""))
    assert (ended.stdout, ended.stderr, ended.returncode) == ("1\n1\n", "", 0)


_INTERRUPTED = """
import asyncio, os, signal, threading
from infinity_emb import AsyncEmbeddingEngine, EngineArgs
engine = AsyncEmbeddingEngine.from_args(
    EngineArgs(model_name_or_path="debug?delay_s=0.01", engine="debugengine", batch_size=1)
)
async def main():
    await engine.astart()
    loop = asyncio.get_running_loop()
    loop.call_later(0.1, os.kill, os.getpid(), signal.SIGINT)
    await engine.embed([f"text {number}" for number in range(30_000)])
"""


@pytest.mark.parametrize(
    "use",
    [
        # What IPython does in a terminal.
        """
        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(main())
        except KeyboardInterrupt:
            print("interrupted")
        """,
        """
        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            print("interrupted")
        loop = asyncio.new_event_loop()
        """,
    ],
)
def test_ctrl_c_cancels_what_the_event_loop_awaits(use: str) -> None:
    """The worker computed 30,000 texts that nobody waited for any more."""
    ended = run_script(
        _INTERRUPTED
        + textwrap.dedent(use)
        + textwrap.dedent(
            """
            async def ask_again():
                return (await engine.embed(["a"]))[1]
            print(loop.run_until_complete(ask_again()), engine.status().num_requests)
            print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
            """
        )
    )
    assert (ended.stdout, ended.returncode) == ("interrupted\n1 0\nTrue\n", 0), ended.stderr


def test_ctrl_c_is_left_to_others_who_handle_it() -> None:
    async def main() -> list[int]:
        async with fake_engine() as engine:
            return await embed(engine)

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert run(main()) == [2, 1]
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
