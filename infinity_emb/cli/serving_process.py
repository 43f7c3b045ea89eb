"""The life of the server process: bind, load, listen, serve, end.

Knows nothing of flags or of the environment. Called by `cli/commands.py`, in the main thread: it handles
signals. torch and the HTTP libraries are imported here and not before, so that `--help` is quick.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import socket
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING

from infinity_emb.cli.listening import base_url, bind_sockets, close_sockets, listen
from infinity_emb.cli.logs import describe_model
from infinity_emb.cli.signals import handle_signals, quit_at_once
from infinity_emb.config import EngineArgs, ServerConfig
from infinity_emb.errors import StartupError

if TYPE_CHECKING:
    from infinity_emb.cli.uvicorn_server import UvicornServer
    from infinity_emb.engine_array import AsyncEngineArray

logger = logging.getLogger("infinity_emb")


def serve(engine_args: Sequence[EngineArgs], config: ServerConfig) -> None:
    """Serve until Ctrl-C or SIGTERM; then finish what was accepted, and return.

    Raises StartupError when a model cannot be loaded, the port cannot be had or an extra is missing.
    """
    with handle_signals(_quit_while_loading):
        sockets = bind_sockets(config.host, config.port)
        try:
            _check_server_extra()
            server = _build_server(load_engines(engine_args), config, sockets)
            listen(sockets, config.host, config.port)
            server.run(sockets=sockets)
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


def _build_server(
    engines: AsyncEngineArray, config: ServerConfig, sockets: list[socket.socket]
) -> UvicornServer:
    from infinity_emb.cli.uvicorn_server import UvicornServer
    from infinity_emb.server.app import build_app

    async def fail_rest() -> None:
        await asyncio.gather(*(engine.astop(drain_timeout_s=0) for engine in engines))

    app = build_app(engines, config)
    return UvicornServer(app, config, url=base_url(sockets), fail_rest=fail_rest)
