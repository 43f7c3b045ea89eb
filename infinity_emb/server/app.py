"""Puts the server together: engines, routes, middlewares, documentation.

Knows nothing of what a route or a middleware does. The command line calls `build_app`; users of the Python
API call `create_server`.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Lifespan

from infinity_emb import __version__
from infinity_emb.config import EngineArgs, ServerConfig
from infinity_emb.engine_array import AsyncEngineArray
from infinity_emb.server.api_route import ApiRoute, add_api_routes
from infinity_emb.server.auth import ApiKeyMiddleware
from infinity_emb.server.classify_route import ClassifyRoute
from infinity_emb.server.dialects.cohere import CohereRoutes
from infinity_emb.server.dialects.nim import NimRoutes
from infinity_emb.server.dialects.ollama import OllamaRoutes
from infinity_emb.server.dialects.tei import TeiRoutes
from infinity_emb.server.docs_page import DocsPage
from infinity_emb.server.embeddings_route import EmbeddingsRoute
from infinity_emb.server.errors import HANDLERS, UnexpectedErrorMiddleware
from infinity_emb.server.http_metrics import HTTPMetrics, HTTPMetricsMiddleware
from infinity_emb.server.model_metrics import ModelCollector
from infinity_emb.server.models_route import ModelsRoute
from infinity_emb.server.request_id import RequestIdMiddleware
from infinity_emb.server.rerank_route import RerankRoute
from infinity_emb.server.served_engines import EngineSource, ServedEngines
from infinity_emb.server.sparse_route import SparseRoute
from infinity_emb.server.system_routes import OPEN_PATHS, SystemRoutes, add_system_routes

logger = logging.getLogger("infinity_emb")

TITLE = "Infinity - Embedding Inference Server"
SUMMARY = "Embedding models, rerankers and classifiers over REST, with the wire format of OpenAI."


class ServerApp(FastAPI):
    """A FastAPI app with the engines that it serves, which exist once it has started."""

    engine_array: AsyncEngineArray


def build_app(engines: EngineSource, config: ServerConfig) -> ServerApp:
    """The ASGI app over `engines`, or over what `engines()` loads when the app starts."""
    served = ServedEngines(engines, shutdown_timeout_s=config.shutdown_timeout_s)
    registry = CollectorRegistry()
    docs = DocsPage(config.url_prefix)
    app = ServerApp(
        title=TITLE,
        summary=SUMMARY,
        version=__version__,
        license_info={"name": "MIT License", "identifier": "MIT"},
        openapi_url=docs.openapi_url,
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan_of(served, preload_only=config.preload_only),
        middleware=_middlewares(config, HTTPMetrics(registry), open_paths=[*OPEN_PATHS, *docs.paths]),
        exception_handlers=HANDLERS,
    )
    # Set afterwards: FastAPI deprecates the argument, and the server behind `create_server` is not ours.
    app.root_path = config.proxy_root_path
    app.state.config = config
    add_api_routes(
        app.router,
        _api_routes(served, max_client_batch_size=config.max_client_batch_size),
        prefix=config.url_prefix,
        # Only for the document; `ApiKeyMiddleware` is what asks.
        dependencies=[Depends(HTTPBearer(auto_error=False))] if config.api_key else [],
    )
    add_system_routes(app.router, SystemRoutes(served, registry))
    docs.add_to(app.router, redirect_from_root=config.redirect_slash)
    _register_collectors(registry, served)
    return app


def create_server(
    *,
    engine_args_list: Sequence[EngineArgs],
    url_prefix: str = "",
    doc_extra: Mapping[str, object] | None = None,
    redirect_slash: str = "/docs",
    preload_only: bool = False,
    permissive_cors: bool = False,
    api_key: str | None = None,
    proxy_root_path: str | None = None,
) -> ServerApp:
    """The app for these models, which are loaded when it starts.

    doc_extra: accepted and not read; the server that runs the app tells where it listens.
    Raises StartupError for an option that makes no sense.
    """
    config = ServerConfig(
        url_prefix=url_prefix,
        redirect_slash=redirect_slash,
        preload_only=preload_only,
        permissive_cors=permissive_cors,
        api_key=api_key or "",
        proxy_root_path=proxy_root_path or "",
    )
    return build_app(lambda: AsyncEngineArray.from_args(engine_args_list), config)


def _api_routes(served: ServedEngines, *, max_client_batch_size: int) -> list[ApiRoute]:
    """In the order of the document."""
    tasks = [
        route(served=served, max_client_batch_size=max_client_batch_size)
        for route in (
            EmbeddingsRoute,
            RerankRoute,
            ClassifyRoute,
            SparseRoute,
            TeiRoutes,
            CohereRoutes,
            OllamaRoutes,
            NimRoutes,
        )
    ]
    return [each for group in (*tasks, ModelsRoute(served)) for each in group.routes()]


def _middlewares(
    config: ServerConfig, metrics: HTTPMetrics, *, open_paths: Sequence[str]
) -> list[Middleware]:
    """From the outermost inwards; what answers by itself stands inside of what must see every answer."""
    middlewares = [Middleware(RequestIdMiddleware), Middleware(HTTPMetricsMiddleware, metrics=metrics)]
    if config.permissive_cors:
        everything = ["*"]
        middlewares.append(
            Middleware(
                CORSMiddleware,
                allow_origins=everything,
                allow_methods=everything,
                allow_headers=everything,
                allow_credentials=True,
                expose_headers=["x-request-id", "retry-after"],
            )
        )
    middlewares.append(Middleware(UnexpectedErrorMiddleware))
    if config.api_key:
        middlewares.append(Middleware(ApiKeyMiddleware, api_key=config.api_key, open_paths=open_paths))
    return middlewares


def _lifespan_of(served: ServedEngines, *, preload_only: bool) -> Lifespan[ServerApp]:
    @asynccontextmanager
    async def lifespan(app: ServerApp) -> AsyncIterator[None]:
        async with served.running() as array:
            app.engine_array = array
            if preload_only:
                _stop_soon()
            yield

    return lifespan


def _stop_soon() -> None:
    """Ask the process to stop, as Ctrl-C would, once the server that runs the app has started."""
    logger.info("everything is loaded; stopping, as preload_only asks")
    asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)


def _register_collectors(registry: CollectorRegistry, served: ServedEngines) -> None:
    registry.register(ModelCollector(served))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
