"""A uvicorn server that stops as orchestrators and users expect.

The first Ctrl-C, SIGTERM, SIGHUP or SIGQUIT stops accepting, finishes accepted requests and lets `run`
return, where uvicorn would raise the signal again and end the process. Requests that are unfinished at the
deadline get an error. A second Ctrl-C exits at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Generator
from functools import partial
from types import FrameType

import uvicorn
from fastapi import FastAPI

from infinity_emb.cli.connection_slots import ConnectionSlots
from infinity_emb.cli.descriptors import FittingConnections, fit_connections
from infinity_emb.cli.http_protocol import ClientLimits, HttpProtocol, enforce_timeouts
from infinity_emb.cli.signals import exit_now, handle_signals
from infinity_emb.config.server_config import ServerConfig
from infinity_emb.scheduling.request_turns import RequestTurns

logger = logging.getLogger("infinity_emb")

# Time after the deadline to finish the running batch and to send the last responses.
GRACE_S = 2
_TICKS_PER_S = 10  # uvicorn's
# Without this, connections arrive faster than they are accepted when each turn of the event loop takes some
# milliseconds. The backlog overflows then, and clients, health checks among them, try again after seconds.
# A server of few connections gets fewer descriptors.
ACCEPTS_PER_TURN = 64 if os.name == "posix" else 1  # uvloop does not run on Windows


class UvicornServer(uvicorn.Server):
    """A server for one app.

    announce: called when the server listens, to tell the user.
    abort_pending: called at the deadline of a shutdown; fails all waiting requests.
    log_state: called in the event loop on SIGUSR1.
    """

    stop_log_level = logging.INFO  # of the lines about stopping

    def __init__(
        self,
        app: FastAPI,
        config: ServerConfig,
        *,
        announce: Callable[[], None],
        abort_pending: Callable[[], Awaitable[object]],
        log_state: Callable[[], None],
    ) -> None:
        connections = fit_connections(config.max_connections)
        super().__init__(_make_uvicorn_config(app, config, connections))
        self._max_connections = connections.max_connections
        self._announce = announce
        self._shutdown_timeout_s = config.shutdown_timeout_s
        self._abort_pending = abort_pending
        self._log_state = log_state

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and announce where the server listens."""
        # libuv accepts one connection per descriptor and turn: https://github.com/libuv/libuv/pull/3696
        number = max(1, min(ACCEPTS_PER_TURN, self._max_connections // ACCEPTS_PER_TURN))
        repeated = [each.dup() for each in sockets or () for _ in range(number)]
        await super().startup(sockets=repeated or None)
        if hasattr(signal, "SIGUSR1"):  # not on Windows
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self._log_state)
        if self.started:
            self._announce()

    async def on_tick(self, counter: int) -> bool:
        """Check once a second for slow clients."""
        if counter % _TICKS_PER_S == 0:
            enforce_timeouts(self.server_state.connections, asyncio.get_running_loop().time())
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish accepted requests until the deadline, then fail the others."""
        logger.log(
            self.stop_log_level,
            "stopping: accepted requests have up to %d s to finish; press Ctrl-C again to exit at once",
            self._shutdown_timeout_s,
        )
        aborting = asyncio.create_task(self._abort_at_deadline())
        try:
            await super().shutdown(sockets=sockets)
        finally:
            aborting.cancel()
        logger.log(self.stop_log_level, "stopped")

    async def _abort_at_deadline(self) -> None:
        await asyncio.sleep(self._shutdown_timeout_s)
        await self._abort_pending()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Handle signals while serving, and do not raise them again."""
        with handle_signals(self.handle_exit):
            yield

    def stop(self) -> None:
        """Begin to stop, as for SIGTERM. Thread-safe."""
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; exit at once on a second Ctrl-C."""
        if self.should_exit and sig == signal.SIGINT:
            exit_now(sig, "exiting at once; accepted requests are lost")
        self.stop()


def _make_uvicorn_config(
    app: FastAPI, config: ServerConfig, connections: FittingConnections
) -> uvicorn.Config:
    limits = ClientLimits(
        request_read_timeout_s=config.request_read_timeout_s,
        response_write_timeout_s=config.response_write_timeout_s,
    )
    slots = ConnectionSlots(**connections._asdict())
    return uvicorn.Config(
        app,
        http=partial(HttpProtocol, limits=limits, slots=slots, turns=RequestTurns()),  # type: ignore[arg-type]  # uvicorn calls what it is given
        loop="auto",  # uvloop where it can be imported
        ws="none",
        lifespan="on",
        log_config=None,  # `log_setup.py` has configured the handler
        access_log=config.log_level in ("debug", "trace"),
        timeout_keep_alive=config.keep_alive_s,
        timeout_graceful_shutdown=config.shutdown_timeout_s + GRACE_S,
    )
