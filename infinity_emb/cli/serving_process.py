"""The life of the server process: bind, load, listen, serve, end.

Knows nothing of flags or of the environment. Called by `cli/commands.py`, in the main thread: it handles
signals. torch and the HTTP libraries are imported here and not before, so that `--help` is quick.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import socket
import sys
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING

from infinity_emb.cli.listening import base_url, bind_sockets, close_sockets, listen
from infinity_emb.cli.logs import describe_model
from infinity_emb.cli.signals import handle_signals, quit_at_once
from infinity_emb.config import EngineArgs, ServerConfig
from infinity_emb.errors import EngineNotReady, StartupError

if TYPE_CHECKING:
    from infinity_emb.cli.uvicorn_server import UvicornServer
    from infinity_emb.engine_array import AsyncEngineArray

logger = logging.getLogger("infinity_emb")

# After so long a thread that waits for the interpreter gets it. A device thread asks for it back after each
# operator; with Python's own 5 ms an event loop that is busy refusing keeps the device waiting.
SWITCH_INTERVAL_S = 0.0005


def serve(engine_args: Sequence[EngineArgs], config: ServerConfig) -> None:
    """Serve until Ctrl-C or SIGTERM; then finish what was accepted, and return.

    Raises StartupError when a model cannot be loaded, the port cannot be had or an extra is missing, and
    EngineNotReady after a device was lost: whoever starts processes can start another one.
    """
    with handle_signals(_quit_while_loading):
        sockets = bind_sockets(config.host, config.port)
        try:
            _check_server_extra()
            _check_api_keys(config)
            engines = load_engines(engine_args)
            server = _build_server(engines, config, sockets)
            dead = _stop_on_death(engines, server)
            listen(sockets, config.host, config.port)
            sys.setswitchinterval(SWITCH_INTERVAL_S)
            server.run(sockets=sockets)
            if dead:
                raise EngineNotReady(f"the device of {', '.join(dead)} is lost; start the server again")
        finally:
            close_sockets(sockets)


def preload(engine_args: Sequence[EngineArgs]) -> None:
    """Load and warm up every model, as an image build does to fill its caches. Raises StartupError."""
    with handle_signals(_quit_while_loading):
        load_engines(engine_args)
    logger.info("every model is loaded; not serving, as --preload-only asks")


def load_engines(engine_args: Sequence[EngineArgs]) -> AsyncEngineArray:
    """The engines, warm but not started, and what was detected about each in the log. Raises StartupError."""
    from infinity_emb.engine_array import AsyncEngineArray

    for args in engine_args:
        logger.info("loading %s with %s on %s", args.model_name_or_path, args.engine, args.device)
    engines = AsyncEngineArray.from_args(engine_args)
    for engine in engines:
        name = engine.engine_args.served_model_name
        for line in describe_model(name, engine.info, max_batch_tokens=engine.max_batch_tokens):
            logger.info("%s", line)
    return engines


def _stop_on_death(engines: AsyncEngineArray, server: UvicornServer) -> list[str]:
    """Stop when a device is lost for good; returns a list that will have the names of its models."""
    dead: list[str] = []

    def stop(name: str) -> None:
        dead.append(name)
        server.stop()

    engines.call_on_death(stop)
    return dead


def _quit_while_loading(number: int, _: FrameType | None) -> None:
    quit_at_once(number, "stopped before the server was ready")


def _check_server_extra() -> None:
    """Before a model is loaded, which may take minutes."""
    try:
        importlib.import_module("infinity_emb.cli.uvicorn_server")
        importlib.import_module("infinity_emb.server.app")
    except ImportError as exc:
        raise StartupError(
            f"the server needs a package that is not installed ({exc});"
            " install it with: pip install 'infinity-emb[server]'"
        ) from exc


def _check_api_keys(config: ServerConfig) -> None:
    """Likewise."""
    from infinity_emb.server.api_keys import ApiKeys

    ApiKeys.of_config(config)


def _build_server(
    engines: AsyncEngineArray, config: ServerConfig, sockets: list[socket.socket]
) -> UvicornServer:
    from infinity_emb.cli.state_dump import describe_state
    from infinity_emb.cli.uvicorn_server import UvicornServer
    from infinity_emb.server.app import build_app

    async def fail_rest() -> None:
        await asyncio.gather(*(engine.astop(drain_timeout_s=0) for engine in engines))

    def tell_state() -> None:
        logger.warning("state, as SIGUSR1 asks:\n%s", "\n".join(describe_state(engines)))

    app = build_app(engines, config)
    return UvicornServer(app, config, url=base_url(sockets), fail_rest=fail_rest, tell_state=tell_state)
