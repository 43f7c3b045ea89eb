"""uvicorn with the ending that an orchestrator and a person at a terminal expect.

The first Ctrl-C or SIGTERM stops accepting, finishes what was accepted and lets `run` return; uvicorn itself
raises the signal again afterwards, which would end the process by it. What is not finished at the deadline
fails with an answer. A second Ctrl-C quits at once. Knows nothing of models. Called by `serving_process.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Generator
from functools import partial
from types import FrameType

import uvicorn
from fastapi import FastAPI

from infinity_emb.cli.guarded_protocol import ClientLimits, GuardedProtocol, end_slow_clients
from infinity_emb.cli.signals import handle_signals, quit_at_once
from infinity_emb.config import ServerConfig

logger = logging.getLogger("infinity_emb")


# What remains after the deadline for the batch on the device, and for answers under way to slow clients.
GRACE_S = 2
_TICKS_PER_S = 10  # uvicorn's


class UvicornServer(uvicorn.Server):
    """One server for one app.

    url: where it listens, for the log.
    fail_rest: called when the deadline of a shutdown has passed; makes waiting requests end with an error.
    tell_state: called in the event loop on SIGUSR1.
    """

    def __init__(
        self,
        app: FastAPI,
        config: ServerConfig,
        *,
        url: str,
        fail_rest: Callable[[], Awaitable[object]],
        tell_state: Callable[[], None],
    ) -> None:
        super().__init__(_uvicorn_config(app, config))
        self._url = url
        self._docs = f", docs at {url}{config.url_prefix}/docs" if config.docs else ""
        self._shutdown_timeout_s = config.shutdown_timeout_s
        self._fail_rest = fail_rest
        self._tell_state = tell_state

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say where it listens, when it does."""
        await super().startup(sockets=sockets)
        if hasattr(signal, "SIGUSR1"):  # Windows has none
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self._tell_state)
        if self.started:
            logger.info("listening on %s%s", self._url, self._docs)

    async def on_tick(self, counter: int) -> bool:
        """Once a second, look for clients that are too slow."""
        if counter % _TICKS_PER_S == 0:
            end_slow_clients(self.server_state.connections, asyncio.get_running_loop().time())
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what was accepted until the deadline, then fail the rest."""
        logger.info(
            "stopping: accepted requests get up to %d s to finish; Ctrl-C again quits at once",
            self._shutdown_timeout_s,
        )
        failing_rest = asyncio.create_task(self._fail_rest_at_deadline())
        try:
            await super().shutdown(sockets=sockets)
        finally:
            failing_rest.cancel()
        logger.info("stopped")

    async def _fail_rest_at_deadline(self) -> None:
        await asyncio.sleep(self._shutdown_timeout_s)
        await self._fail_rest()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Handle signals while serving, and do not raise them again."""
        with handle_signals(self.handle_exit):
            yield

    def stop(self) -> None:
        """Begin to stop, as for SIGTERM; may be called on any thread."""
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; on a second Ctrl-C, quit."""
        if self.should_exit and sig == signal.SIGINT:
            quit_at_once(sig, "quit at once; requests that were accepted are lost")
        self.stop()


def _uvicorn_config(app: FastAPI, config: ServerConfig) -> uvicorn.Config:
    limits = ClientLimits(
        request_read_timeout_s=config.request_read_timeout_s,
        answer_write_timeout_s=config.answer_write_timeout_s,
        max_connections=config.max_connections,
    )
    return uvicorn.Config(
        app,
        http=partial(GuardedProtocol, limits=limits),  # type: ignore[arg-type]  # uvicorn calls what it is given
        loop="auto",  # uvloop where it can be imported
        ws="none",
        lifespan="on",
        log_config=None,  # its lines go through the handler that `logs.py` sets up
        access_log=config.log_level in ("debug", "trace"),
        timeout_graceful_shutdown=config.shutdown_timeout_s + GRACE_S,
    )
