"""Run the engine process: compute for the front ends, replace those that end, and stop them all."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import fields
from typing import Any

from infinity_emb.cli.front_ends.engine_app import build_engine_app
from infinity_emb.cli.front_ends.engine_service import EngineService
from infinity_emb.cli.front_ends.fork_server import ForkServer
from infinity_emb.cli.front_ends.front_end import run_front_end
from infinity_emb.cli.front_ends.remote_engine import keep_preprocessing
from infinity_emb.cli.front_ends.session import Session
from infinity_emb.cli.signals import exit_now, handle_signals
from infinity_emb.cli.state_dump import describe_state
from infinity_emb.cli.uvicorn_server import GRACE_S
from infinity_emb.concurrency import call_in_loop
from infinity_emb.config.server_config import ServerConfig
from infinity_emb.engine.array import AsyncEngineArray
from infinity_emb.engine.garbage import collect_all
from infinity_emb.errors import EngineNotReady, StartupError

logger = logging.getLogger("infinity_emb")

# The server gives up after this many consecutive front ends that end before any is ready.
MAX_FAILED_STARTS = 5
_RESTART_PAUSE_S = 0.2
# A front end that does not answer for this many ticks is killed. Ticks are counted instead of seconds,
# because a suspended machine stops every process.
TICK_S = 5.0
MAX_MISSED_TICKS = 6
_DIVIDED = {"max_connections": 0, "max_total_body_bytes": 1}  # among front ends and other processes


def serve_with_front_ends(
    engines: AsyncEngineArray,
    config: ServerConfig,
    sockets: Sequence[list[socket.socket]],
    announce: Callable[[], None],
) -> None:
    """Serve until a stop signal. The models are loaded, the sockets listen.

    sockets: of each front end. announce: called when all of them serve.
    Raises EngineNotReady when a device was lost, and StartupError when no front end starts.
    """
    num_front_ends = len(sockets)
    share = share_limits(config, num_front_ends)
    front_end_config = share_limits(config, num_front_ends, without=["batch_dir"])
    fork_server = ForkServer(
        lambda number, end: run_front_end(
            engines, front_end_config, sockets[number], end, num_front_ends=num_front_ends
        ),
        prepare=lambda: _drop_weights(engines, has_unloads=bool(config.admin_key)),
    )
    try:
        _run(Supervisor(engines, share, fork_server, num_front_ends, announce).run())
    finally:
        fork_server.close()


def share_limits(config: ServerConfig, num_front_ends: int, *, without: Sequence[str] = ()) -> ServerConfig:
    """Return the options of one of the processes: limits of the whole server are divided.

    without: options that get their default.
    """
    given = {
        each.name: value
        for each in fields(config)
        if (value := getattr(config, each.name)) != each.default and each.name not in without
    }
    shares = {
        name: -(-getattr(config, name) // (num_front_ends + num_others))
        for name, num_others in _DIVIDED.items()
    }
    return ServerConfig(**(given | shares))


def _drop_weights(engines: AsyncEngineArray, *, has_unloads: bool) -> None:
    """Drop references to weights in a process that does not compute, so that unloading frees them."""
    for engine in engines:
        assert engine.slot.model is not None
        engine.slot.model = keep_preprocessing(engine.slot.model)
    if has_unloads or any(engine.engine_args.idle_unload_s for engine in engines):
        # Frees the weights, which are in reference cycles; this process then has its own copy of the pages
        # of all objects, 0.2 GB with torch.
        collect_all()


class Supervisor:
    """Keep a number of front ends running."""

    def __init__(
        self,
        engines: AsyncEngineArray,
        config: ServerConfig,
        fork_server: ForkServer,
        num_front_ends: int,
        announce: Callable[[], None],
    ) -> None:
        self._engines = engines
        self._config = config
        self._shutdown_timeout_s = config.shutdown_timeout_s
        self._fork_server = fork_server
        self._num_front_ends = num_front_ends
        self._announce = announce
        self._numbers: dict[Session, int] = {}
        self._ready: set[Session] = set()
        self._num_failed_starts = 0
        self._has_announced = False
        self._failure: Exception | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until stopped. Raises what `serve_with_front_ends` does."""
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._all_ended = asyncio.Event()
        self._service = EngineService(self._engines, on_ready=self._be_ready, on_lost=self._replace)
        app = build_engine_app(self._engines, self._config, self._service)
        self._engines.call_on_death(lambda name: call_in_loop(self._loop, lambda: self._lose_device(name)))
        if hasattr(signal, "SIGUSR1"):
            self._loop.add_signal_handler(signal.SIGUSR1, self._log_state)
        with handle_signals(self._handle_signal):
            async with app.router.lifespan_context(app):  # starts and stops the engines
                try:
                    await self._serve()
                finally:
                    self._service.close()
        logger.info("stopped")
        if self._failure is not None:
            raise self._failure

    async def _serve(self) -> None:
        """Start the front ends, wait for a stop, and drain them."""
        for number in range(self._num_front_ends):
            await self._start(number)
        watching = asyncio.ensure_future(self._kill_hung())
        await self._stopping.wait()
        watching.cancel()
        await self._drain()

    async def _start(self, number: int) -> None:
        end = self._fork_server.start(number)  # first: it may fail
        session = self._service.open_session()
        self._numbers[session] = number
        await session.link.connect(end)
        if self._stopping.is_set():  # meanwhile; the other front ends are draining already
            session.link.send({"kind": "drain"})

    def _be_ready(self, session: Session) -> None:
        self._ready.add(session)
        self._num_failed_starts = 0
        if not self._has_announced and len(self._ready) == self._num_front_ends:
            self._has_announced = True
            self._announce()

    def _replace(self, session: Session) -> None:
        """Start another front end in the place of one that has ended."""
        number = self._numbers.pop(session)
        was_ready = session in self._ready
        self._ready.discard(session)
        if self._stopping.is_set():
            if not self._numbers:
                self._all_ended.set()
            return
        logger.error("front end %d (pid %d) has ended; starting another", number, session.pid)
        self._num_failed_starts += not was_ready
        if self._num_failed_starts >= MAX_FAILED_STARTS:
            self._fail(StartupError("front ends end before they can serve; the log above says why"))
            return
        task = asyncio.ensure_future(self._start_later(number))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _kill_hung(self) -> None:
        """End front ends whose event loop hangs, or that do not start: they answer no client either."""
        before: dict[Session, asyncio.Future[None]] = {}
        missed: dict[Session, int] = {}
        while True:
            asked = {session: session.ask_for_report() for session in self._numbers}
            missed = {
                session: missed.get(session, 0) + 1 if before.get(session) is report else 0
                for session, report in asked.items()
            }
            for session, number in missed.items():
                if number == MAX_MISSED_TICKS:
                    self._end_hung(session)
            before = asked
            await asyncio.sleep(TICK_S)

    def _end_hung(self, session: Session) -> None:
        if not session.pid:
            logger.error("front end %d does not start", self._numbers[session])
            session.link.close()
            return
        logger.error("front end with pid %d does not answer; killing it", session.pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(session.pid, signal.SIGKILL)

    async def _start_later(self, number: int) -> None:
        await asyncio.sleep(_RESTART_PAUSE_S * self._num_failed_starts)
        while not self._stopping.is_set():
            try:
                await self._start(number)
                return
            except EngineNotReady as exc:
                self._fail(exc)
            except OSError as exc:  # such as too many open files
                logger.error("front end %d cannot be started now: %s", number, exc)
                await asyncio.sleep(TICK_S)

    def _lose_device(self, name: str) -> None:
        self._fail(EngineNotReady(f"lost the device of {name}; restart the server"))

    def _fail(self, failure: Exception) -> None:
        self._failure = self._failure or failure
        self._stopping.set()

    async def _drain(self) -> None:
        """Let the front ends finish what they have accepted."""
        logger.info(
            "stopping: accepted requests have up to %d s to finish; press Ctrl-C again to exit at once",
            self._shutdown_timeout_s,
        )
        for session in self._service.sessions:
            session.link.send({"kind": "drain"})
        if self._numbers:
            waiting = asyncio.ensure_future(self._all_ended.wait())
            await asyncio.wait([waiting], timeout=self._shutdown_timeout_s + 2 * GRACE_S)
            waiting.cancel()

    def _handle_signal(self, number: int, _: object) -> None:
        if self._stopping.is_set() and number == signal.SIGINT:
            exit_now(number, "exiting at once; accepted requests are lost")
        self._loop.call_soon_threadsafe(self._stopping.set)

    def _log_state(self) -> None:
        logger.warning("state dump (SIGUSR1):\n%s", "\n".join(describe_state(self._engines)))
        for session in self._service.sessions:
            session.link.send({"kind": "dump"})


def _run(main: Coroutine[Any, Any, None]) -> None:
    """Run an event loop, uvloop's where it can be imported."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)
