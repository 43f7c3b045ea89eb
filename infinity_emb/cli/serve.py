"""Run the server process: bind the port, load the models, listen, serve, stop.

Runs in the main thread, because it handles signals. torch and the HTTP libraries are imported here on
demand, so that `--help` is quick.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import ipaddress
import logging
import socket
import sys
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING

from infinity_emb.cli.front_ends.choice import choose_front_ends
from infinity_emb.cli.load_display import StageTimes, watch_loads
from infinity_emb.cli.log_setup import describe_model
from infinity_emb.cli.signals import exit_now, handle_signals, ignore_user_signals
from infinity_emb.cli.sockets import base_url, bind_groups, close_sockets, listen
from infinity_emb.cli.start_summary import StartSummary, draws_summary
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.config.server_config import ServerConfig
from infinity_emb.errors import EngineNotReady, StartupError, require_extra

if TYPE_CHECKING:
    from infinity_emb.cli.uvicorn_server import UvicornServer
    from infinity_emb.engine.array import AsyncEngineArray

logger = logging.getLogger("infinity_emb")

# How long another thread waits for the interpreter lock. A worker thread needs it after each operator; with
# Python's default of 5 ms, an event loop busy with refusing requests keeps the device idle.
SWITCH_INTERVAL_S = 0.0005
# When the garbage collector runs. By Python's default it visits the objects of all waiting requests every few
# seconds, which blocks the event loop for 0.2 s when 2,000 requests wait.
GC_THRESHOLDS = (2_000, 5, 100)


def serve(engine_args: Sequence[EngineArgs], config: ServerConfig) -> None:
    """Serve until Ctrl-C or another stop signal, finish the accepted requests, and return.

    Raises StartupError when a model cannot be loaded, the port is taken or an extra is missing, and
    EngineNotReady when a device was lost, so that a supervisor can start another process.
    """
    ignore_user_signals()
    with handle_signals(_exit_while_loading):
        number = config.api_servers if isinstance(config.api_servers, int) else 1
        if number > 1 and sys.platform != "linux":
            raise StartupError(f"--api-servers {number} needs Linux; start with --api-servers 1")
        groups = bind_groups(config.host, config.port, number)
        try:
            with require_extra("the server", "server"):
                importlib.import_module("infinity_emb.cli.uvicorn_server")
                importlib.import_module("infinity_emb.server.app")
            _check_api_keys(config)
            _check_tracing(config)
            _warn_of_open_api(config, groups[0])
            is_drawn = draws_summary(config)
            with _watch(engine_args, is_drawn=is_drawn) as times:
                # In a terminal, the start summary replaces these details.
                engines = load_engines(engine_args, details_level=logging.DEBUG if is_drawn else logging.INFO)
            sys.setswitchinterval(SWITCH_INTERVAL_S)
            gc.set_threshold(*GC_THRESHOLDS)
            if config.api_servers != number:  # auto
                number = choose_front_ends(config, engines)
            if number > len(groups):
                port = groups[0][0].getsockname()[1]
                close_sockets(groups[0])
                groups = bind_groups(config.host, port, number)
            if number > 1:
                _serve_with_front_ends(engines, config, groups, times)
            else:
                _serve_alone(engines, config, groups[0], times)
        finally:
            for group in groups:
                close_sockets(group)


def _serve_alone(
    engines: AsyncEngineArray, config: ServerConfig, sockets: list[socket.socket], times: StageTimes
) -> None:
    """Compute and serve in this process. Raises EngineNotReady when a device was lost."""
    server = _build_server(engines, config, sockets, times)
    lost = _stop_on_lost_device(engines, server)
    from infinity_emb.engine.garbage import frozen_objects

    listen(sockets, config.host, config.port)
    with frozen_objects():
        server.run(sockets=sockets)
    if lost:
        raise EngineNotReady(f"lost the device of {', '.join(lost)}; restart the server")


def _serve_with_front_ends(
    engines: AsyncEngineArray,
    config: ServerConfig,
    groups: list[list[socket.socket]],
    times: StageTimes,
) -> None:
    """Compute in this process, and serve in others. Raises EngineNotReady and StartupError."""
    from infinity_emb.cli.front_ends.supervisor import serve_with_front_ends
    from infinity_emb.engine.garbage import frozen_objects

    for sockets in groups:
        listen(sockets, config.host, config.port)
    summary = StartSummary(engines, config, base_url(groups[0]), times)
    with frozen_objects():
        serve_with_front_ends(engines, config, groups, summary.announce)


def preload(engine_args: Sequence[EngineArgs], *, is_drawn: bool = False) -> None:
    """Load and warm up every model, to fill caches in an image build. Raises StartupError.

    is_drawn: show a progress bar.
    """
    with handle_signals(_exit_while_loading), _watch(engine_args, is_drawn=is_drawn):
        load_engines(engine_args)
    logger.info("all models loaded; exiting (--preload-only)")


def load_engines(engine_args: Sequence[EngineArgs], *, details_level: int = logging.INFO) -> AsyncEngineArray:
    """Load and warm up the engines without starting them, and log what was detected. Raises StartupError.

    details_level: of the lines about each model.
    """
    from infinity_emb.engine.array import AsyncEngineArray

    for args in engine_args:
        logger.info("loading %s (engine %s, device %s)", args.model_name_or_path, args.engine, args.device)
    engines = AsyncEngineArray.from_args(engine_args)
    for engine in engines:
        name = engine.engine_args.served_model_name
        for line in describe_model(name, engine.info, max_batch_tokens=engine.max_batch_tokens):
            logger.log(details_level, "%s", line)
    return engines


def _watch(
    engine_args: Sequence[EngineArgs], *, is_drawn: bool
) -> contextlib.AbstractContextManager[StageTimes]:
    return watch_loads([args.served_model_name for args in engine_args], is_drawn=is_drawn)


def _stop_on_lost_device(engines: AsyncEngineArray, server: UvicornServer) -> list[str]:
    """Stop when a device is lost for good; return a list that the names of its models are added to."""
    lost: list[str] = []

    def stop(name: str) -> None:
        lost.append(name)
        server.stop()

    engines.call_on_death(stop)
    return lost


def _exit_while_loading(number: int, _: FrameType | None) -> None:
    exit_now(number, "stopped before the server was ready")


def _check_api_keys(config: ServerConfig) -> None:
    """Check before models are loaded."""
    from infinity_emb.server.middleware.api_keys import ApiKeys

    ApiKeys.from_config(config)


def _check_tracing(config: ServerConfig) -> None:
    """Check before models are loaded."""
    if config.otel:
        from infinity_emb.server.tracing import make_tracing

        make_tracing()


def _warn_of_open_api(config: ServerConfig, sockets: list[socket.socket]) -> None:
    has_key = config.api_key or config.api_key_file
    hosts = [ipaddress.ip_address(bound.getsockname()[0].partition("%")[0]) for bound in sockets]
    if not has_key and not all(host.is_loopback for host in hosts):
        logger.warning(
            "no API key is set: anyone who can reach %s can use the models; set --api-key or --host"
            " 127.0.0.1",
            base_url(sockets),
        )


def _build_server(
    engines: AsyncEngineArray, config: ServerConfig, sockets: list[socket.socket], times: StageTimes
) -> UvicornServer:
    from infinity_emb.cli.state_dump import describe_state
    from infinity_emb.cli.uvicorn_server import UvicornServer
    from infinity_emb.server.app import build_app

    async def abort_pending() -> None:
        await asyncio.gather(*(engine.astop(drain_timeout_s=0) for engine in engines))

    def log_state() -> None:
        logger.warning("state dump (SIGUSR1):\n%s", "\n".join(describe_state(engines)))

    app = build_app(engines, config)
    if config.docs:
        app.openapi()  # kept: the first request for it would block the event loop
    summary = StartSummary(engines, config, base_url(sockets), times)
    return UvicornServer(
        app, config, announce=summary.announce, abort_pending=abort_pending, log_state=log_state
    )
