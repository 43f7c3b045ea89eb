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

from fastapi import Depends, FastAPI, params
from fastapi.security import HTTPBearer
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Lifespan

from infinity_emb import __version__
from infinity_emb.config import EngineArgs, ServerConfig, given_options
from infinity_emb.engine_array import AsyncEngineArray
from infinity_emb.server.admin_route import ADMIN_PATH, AdminRoute
from infinity_emb.server.api_keys import ApiKeys
from infinity_emb.server.api_route import ApiRoute, add_api_routes, direct_routes, error_shapes
from infinity_emb.server.auth import ApiKeyMiddleware
from infinity_emb.server.body_limit import BodyReader
from infinity_emb.server.classify_route import ClassifyRoute
from infinity_emb.server.dialects.cohere import CohereRoutes
from infinity_emb.server.dialects.nim import NIM_HEALTH_PATHS, NimHealthRoutes, NimRoutes
from infinity_emb.server.dialects.ollama import OllamaRoutes
from infinity_emb.server.dialects.tei import TeiRoutes
from infinity_emb.server.dialects.tei_tokens import TeiTokenRoutes
from infinity_emb.server.dialects.vllm import VllmRoutes
from infinity_emb.server.direct_routes import DirectRoutesMiddleware
from infinity_emb.server.docs_page import DocsPage
from infinity_emb.server.embeddings_route import EmbeddingsRoute
from infinity_emb.server.error_shape import ErrorShape
from infinity_emb.server.errors import HANDLERS, RETRY_HEADERS, UnexpectedErrorMiddleware
from infinity_emb.server.http_metrics import HTTPMetrics, HTTPMetricsMiddleware
from infinity_emb.server.model_metrics import ModelCollector
from infinity_emb.server.models_route import ModelsRoute
from infinity_emb.server.request_id import RequestIdMiddleware
from infinity_emb.server.rerank_route import RerankRoute
from infinity_emb.server.served_engines import EngineSource, ServedEngines
from infinity_emb.server.sparse_route import SparseRoute
from infinity_emb.server.system_routes import METRICS_PATH, OPEN_PATHS, SystemRoutes, add_system_routes

logger = logging.getLogger("infinity_emb")

TITLE = "Infinity - Embedding Inference Server"
SUMMARY = "Embedding models, rerankers and classifiers over REST, with the wire format of OpenAI."


class ServerApp(FastAPI):
    """A FastAPI app with the engines that it serves, which exist once it has started."""

    engine_array: AsyncEngineArray


def build_app(engines: EngineSource, config: ServerConfig) -> ServerApp:
    """The ASGI app over `engines`, or over what `engines()` loads when the app starts.

    Raises StartupError for an `--api-key-file` without keys.
    """
    served = ServedEngines(engines, shutdown_timeout_s=config.shutdown_timeout_s)
    registry = CollectorRegistry()
    docs = DocsPage(config.url_prefix, is_served=config.docs)
    routes = _api_routes(served, max_client_batch_size=config.max_client_batch_size)
    admin_routes = AdminRoute(served).routes() if config.admin_key else []
    auth = _auth_of(
        config,
        open_paths=_open_paths(config, docs),
        shapes=error_shapes(routes, prefix=config.url_prefix),
    )
    direct = Middleware(
        DirectRoutesMiddleware, routes=direct_routes([*routes, *admin_routes], prefix=config.url_prefix)
    )
    app = ServerApp(
        title=TITLE,
        summary=SUMMARY,
        version=__version__,
        license_info={"name": "MIT License", "identifier": "MIT"},
        openapi_url=docs.openapi_url,
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan_of(served, preload_only=config.preload_only),
        middleware=[*_middlewares(config, HTTPMetrics(registry)), *auth, direct],
        exception_handlers=HANDLERS,
    )
    # Set afterwards: FastAPI deprecates the argument, and the server behind `create_server` is not ours.
    app.root_path = config.proxy_root_path
    app.state.served = served
    app.state.bodies = BodyReader(
        max_body_bytes=config.max_body_bytes, max_total_bytes=config.max_total_body_bytes
    )
    add_api_routes(
        app.router,
        routes,
        prefix=config.url_prefix,
        dependencies=_shown_key() if ApiKeys.of_config(config) else [],
    )
    add_api_routes(app.router, admin_routes, prefix=config.url_prefix, dependencies=_shown_key())
    system = SystemRoutes(served, registry)
    add_system_routes(app.router, system, has_metrics=config.metrics != "off")
    NimHealthRoutes(system).add_to(app.router)
    docs.add_to(app.router, redirect_from_root=config.redirect_slash)
    _register_collectors(registry, served)
    return app


def create_server(
    *,
    engine_args_list: Sequence[EngineArgs],
    url_prefix: str | None = None,
    doc_extra: Mapping[str, object] | None = None,
    redirect_slash: str | None = None,
    preload_only: bool | None = None,
    permissive_cors: bool | None = None,
    api_key: str | Sequence[str] | None = None,
    proxy_root_path: str | None = None,
) -> ServerApp:
    """The app for these models, which are loaded when it starts.

    An option that is not given, or None, is what `INFINITY_*` says, the key first of all.
    doc_extra: accepted and not read; the server that runs the app tells where it listens.
    Raises StartupError for an option that makes no sense.
    """
    given = {
        "url_prefix": url_prefix,
        "redirect_slash": redirect_slash,
        "preload_only": preload_only,
        "permissive_cors": permissive_cors,
        "proxy_root_path": proxy_root_path,
    }
    values: dict[str, Sequence[object]] = {
        name: [value] for name, value in given.items() if value is not None
    }
    if api_key is not None:
        values["api_key"] = [api_key] if isinstance(api_key, str) else api_key
    config = ServerConfig.from_given(given_options(ServerConfig, values))
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
            TeiTokenRoutes,
            CohereRoutes,
            OllamaRoutes,
            NimRoutes,
            VllmRoutes,
        )
    ]
    return [each for group in (*tasks, ModelsRoute(served)) for each in group.routes()]


def _middlewares(config: ServerConfig, metrics: HTTPMetrics) -> list[Middleware]:
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
                expose_headers=["x-request-id", *RETRY_HEADERS],
            )
        )
    middlewares.append(Middleware(UnexpectedErrorMiddleware))
    return middlewares


def _auth_of(
    config: ServerConfig, *, open_paths: Sequence[str], shapes: Mapping[str, ErrorShape]
) -> list[Middleware]:
    """The innermost middleware, where a key is asked for."""
    keys, admin_keys = ApiKeys.of_config(config), ApiKeys.of_admin(config)
    if keys is None and admin_keys is None:
        return []
    return [
        Middleware(
            ApiKeyMiddleware,
            api_keys=keys,
            open_paths=open_paths,
            error_shapes=shapes,
            admin_keys=admin_keys,
            admin_path=config.url_prefix + ADMIN_PATH,
        )
    ]


def _shown_key() -> list[params.Depends]:
    """Only for the document; `ApiKeyMiddleware` is what asks."""
    return [Depends(HTTPBearer(auto_error=False))]


def _open_paths(config: ServerConfig, docs: DocsPage) -> list[str]:
    metrics = [METRICS_PATH] if config.metrics == "open" else []
    return [*OPEN_PATHS, *NIM_HEALTH_PATHS, *docs.paths, *metrics]


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
