"""Run a front end: an HTTP server whose engines compute in another process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Generator

from fastapi import FastAPI

from infinity_emb.backends.registry import use_one_thread
from infinity_emb.cli.front_ends.client import EngineClient
from infinity_emb.cli.front_ends.counters import read_counters
from infinity_emb.cli.front_ends.forwarding import ForwardingMiddleware
from infinity_emb.cli.front_ends.frames import Header, pack_frame
from infinity_emb.cli.front_ends.remote_engine import RemoteEngine
from infinity_emb.cli.front_ends.reports import SummingRegistry, pack_metrics
from infinity_emb.cli.front_ends.shared_models import LocalModels
from infinity_emb.cli.signals import STOP_SIGNALS
from infinity_emb.cli.state_dump import describe_state
from infinity_emb.cli.uvicorn_server import UvicornServer
from infinity_emb.config.server_config import ServerConfig
from infinity_emb.engine.array import AsyncEngineArray
from infinity_emb.server.app import build_app

logger = logging.getLogger("infinity_emb")


def run_front_end(
    engines: AsyncEngineArray,
    config: ServerConfig,
    sockets: list[socket.socket],
    end: socket.socket,
    *,
    num_front_ends: int,
) -> int:
    """Serve until the engine process stops it or ends; return the exit code.

    engines: with the models loaded, never started. config: with this front end's share of the limits.
    end: of the socket to the engine process.
    """
    end.sendall(b"".join(pack_frame({"kind": "started", "pid": os.getpid()})))
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # a terminal sends Ctrl-C to every process
    use_one_thread()
    client = EngineClient()
    remote = [
        RemoteEngine(engine, client, number, num_front_ends=num_front_ends)
        for number, engine in enumerate(engines)
    ]
    for engine in engines:
        engine.slot.model = None  # freed when it is unloaded
    registry = SummingRegistry(lambda: ())
    array = AsyncEngineArray(remote)
    models = LocalModels(array)
    app = build_app(array, config, registry=registry)
    app.add_middleware(ForwardingMiddleware, client=client, models=models, url_prefix=config.url_prefix)

    async def abort_pending() -> None:
        for abort in client.on_abort_callbacks:
            abort()
        await asyncio.gather(*(engine.astop(drain_timeout_s=0) for engine in remote))

    def log_state() -> None:
        logger.warning("state of the front end %d:\n%s", os.getpid(), "\n".join(describe_state(array)))

    def report() -> Header:
        counters = {status.name: read_counters(status) for status in (engine.status() for engine in remote)}
        return {"models": counters, "metrics": pack_metrics(registry.collect_own())}

    client.make_report = report
    client.on_models = lambda header: models.update(header["numbers"], are_all=header["are_all"])
    server = FrontEndServer(app, config, client, end, abort_pending=abort_pending, log_state=log_state)
    server.run(sockets=sockets)
    return server.exit_code


class FrontEndServer(UvicornServer):
    """A server that is connected to the engine process while it runs.

    end: of the socket to the engine process.
    """

    stop_log_level = logging.DEBUG  # the engine process logs them

    def __init__(
        self,
        app: FastAPI,
        config: ServerConfig,
        client: EngineClient,
        end: socket.socket,
        *,
        abort_pending: Callable[[], Awaitable[object]],
        log_state: Callable[[], None],
    ) -> None:
        super().__init__(
            app, config, announce=self._send_ready, abort_pending=abort_pending, log_state=log_state
        )
        self.exit_code = 0
        self._client = client
        self._end = end
        self._closes_port = False
        self._has_ended = False
        client.on_drain = self._drain
        client.on_dump = log_state
        client.on_lost_callbacks.append(self._lose_engine)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve, then close the socket, which tells the engine process."""
        self._listening = [each.dup() for each in sockets or ()]
        await self._client.link.connect(self._end)
        await self._client.wait_for_models()
        try:
            await super().serve(sockets)
        finally:
            self._has_ended = True
            self._client.link.close()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish accepted requests; close the port for all processes that hold it, if the server stops."""
        for server in self.servers:
            server.close()
        for listening in self._listening:
            if self._closes_port:
                listening.shutdown(socket.SHUT_RDWR)
            listening.close()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Stop for SIGTERM only: the engine process handles the other signals."""
        previous = signal.signal(signal.SIGTERM, self.handle_exit)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)

    def _lose_engine(self) -> None:
        """Stop, since nothing can be computed any more; at once during startup, or if already stopping."""
        if self._has_ended:
            return
        if self.should_exit or not self.started:
            os._exit(1)
        logger.error("the engine process has ended: front end %d stops", os.getpid())
        self.exit_code = 1
        self._drain()

    def _drain(self) -> None:
        self._closes_port = True
        self.stop()

    def _send_ready(self) -> None:
        self._client.link.send({"kind": "ready"})
