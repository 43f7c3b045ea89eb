"""Build servers of the fake engine, and clients that reach them without a socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI

from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.config.server_config import ServerConfig
from infinity_emb.engine.array import AsyncEngineArray
from infinity_emb.server.app import build_app
from infinity_emb.server.server_app import ServerApp
from infinity_emb.types import InferenceEngine


def debug_args(model: str = "debug", **options: Any) -> EngineArgs:
    """Return options of the fake engine; faults follow a `?` in the model's name."""
    options.setdefault("served_model_name", model.partition("?")[0])
    return EngineArgs(model_name_or_path=model, engine=InferenceEngine.debugengine, **options)


def build_debug_app(*args: EngineArgs, **config: Any) -> ServerApp:
    """Build an app over these models, or over one named `debug`."""
    return build_app(AsyncEngineArray.from_args(args or [debug_args()]), ServerConfig(**config))


@asynccontextmanager
async def client_of(app: FastAPI, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Start the app, and stop it afterwards."""
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", **options) as client,
    ):
        yield client


@asynccontextmanager
async def client_of_kind(kind: str, **config: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Start a server of one model of a kind, named `debug`, and return a client."""
    async with client_of(build_debug_app(debug_args(f"debug?kind={kind}"), **config)) as client:
        yield client


async def embed(client: httpx.AsyncClient, text: Any = "hello", **members: Any) -> httpx.Response:
    """POST /embeddings."""
    return await client.post("/embeddings", json={"input": text, **members})
