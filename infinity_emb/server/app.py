"""Build the server: routes, middleware and OpenAPI document over the served models.

The command line calls `build_app`; users of the Python API call `create_server`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute
from starlette.types import Lifespan

from infinity_emb._version import __version__
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.config.environment import collect_given
from infinity_emb.config.server_config import ServerConfig
from infinity_emb.engine.array import AsyncEngineArray
from infinity_emb.scheduling.fair_threads import FairThreads
from infinity_emb.server.batches.routes import make_batch_endpoints
from infinity_emb.server.batches.service import BatchService, make_batch_service
from infinity_emb.server.endpoints import API_ENDPOINTS, HEALTH_ENDPOINTS, OPEN_PATHS, PROBE_PATHS
from infinity_emb.server.metrics import ModelCollector
from infinity_emb.server.middleware.api_keys import ApiKeys
from infinity_emb.server.middleware.auth import ApiKeyMiddleware
from infinity_emb.server.middleware.http_metrics import HTTPMetrics, HTTPMetricsMiddleware
from infinity_emb.server.middleware.request_counters import RequestCounters
from infinity_emb.server.middleware.request_id import RequestIdMiddleware
from infinity_emb.server.middleware.unexpected_errors import UnexpectedErrorMiddleware
from infinity_emb.server.requests.body import BodyReader
from infinity_emb.server.requests.json_body import JsonReader
from infinity_emb.server.requests.memory import MemoryBudget
from infinity_emb.server.responses.errors import HANDLERS, RETRY_HEADERS
from infinity_emb.server.router import ExactPathRouter, ServerContext, make_routes
from infinity_emb.server.routes.admin import ADMIN_ENDPOINTS, ADMIN_PATH
from infinity_emb.server.routes.pages import Pages
from infinity_emb.server.routes.system import METRICS_PATH, make_metrics_endpoint
from infinity_emb.server.routing import Endpoint, map_error_formats
from infinity_emb.server.served_models import EngineSource, ServedModels
from infinity_emb.server.server_app import ServerApp
from infinity_emb.server.tracing import make_tracing

if TYPE_CHECKING:
    from infinity_emb.server.tracing.middleware import Tracing

logger = logging.getLogger("infinity_emb")

TITLE = "Infinity - Embedding Inference Server"
SUMMARY = "Embedding models, rerankers and classifiers over REST, compatible with the API of OpenAI."


def build_app(
    engines: EngineSource,
    config: ServerConfig,
    *,
    documents_at_start: bool = False,
    registry: CollectorRegistry | None = None,
) -> ServerApp:
    """Build the ASGI app that serves `engines`, or what `engines()` loads when the app starts.

    documents_at_start: build the OpenAPI document when the app starts; building it for the first request
        would block the event loop for a second.
    registry: where metrics are collected; by default a new one.
    Raises StartupError for an `--api-key-file` without keys.
    """
    models = ServedModels(
        engines, shutdown_timeout_s=config.shutdown_timeout_s, is_strict_about_names=config.strict_model_names
    )
    registry = registry or CollectorRegistry()
    tracing = make_tracing() if config.otel else None
    pages = Pages(config)
    keys = ApiKeys.from_config(config)
    context = _make_context(models, config)
    batches = make_batch_service(config, context) if config.batch_dir else None
    endpoints = [*API_ENDPOINTS, *(make_batch_endpoints(batches) if batches else [])]
    routes = [(each.method, path) for each in API_ENDPOINTS for path in each.list_paths(config.url_prefix)]
    tasks = [path for method, path in routes if method == "POST"]
    metrics = HTTPMetrics(RequestCounters(models, tasks), routes)
    lifespan = _make_lifespan(
        models, tracing, batches, preload_only=config.preload_only, documents_at_start=documents_at_start
    )
    app = ServerApp(
        **_build_document(pages),
        lifespan=lifespan,
        # FastAPI writes its own spans if the process has set a provider.
        telemetry={"tracing": tracing is None},
        middleware=[
            *_build_middleware(config, keys, pages, metrics, tracing),
            *(batches.middleware if batches else ()),
        ],
        exception_handlers=HANDLERS,
        routes=_build_routes(config, context, pages, registry, endpoints, has_keys=keys is not None),
    )
    app.router = ExactPathRouter(routes=app.router.routes, lifespan=lifespan)
    # Set afterwards: FastAPI deprecates the argument, and users of `create_server` run their own server.
    app.root_path = config.proxy_root_path
    app.state.context, app.state.batches = context, batches
    _register_collectors(registry, metrics, models)
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
    """Build the app for these models, which are loaded when it starts.

    Options that are None or left out, the API key in particular, come from `INFINITY_*` variables.
    api_key: "", the default of 0.0.77, serves without a key even if `INFINITY_API_KEY` is set.
    doc_extra: accepted and ignored; the server that runs the app reports its address.
    Raises StartupError for an invalid option.
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
    environ = dict(os.environ)
    if api_key == "":
        environ.pop("INFINITY_API_KEY", None)
    elif api_key is not None:
        values["api_key"] = [api_key] if isinstance(api_key, str) else api_key
    config = ServerConfig.from_given(collect_given(ServerConfig, values, environ, is_per_model=False))
    return build_app(lambda: AsyncEngineArray.from_args(engine_args_list), config, documents_at_start=True)


def _make_context(models: ServedModels, config: ServerConfig) -> ServerContext:
    """Create the state that all routes share."""
    threads = FairThreads(1, "infinity-json")
    return ServerContext(
        models=models,
        bodies=JsonReader(BodyReader(threads, max_body_bytes=config.max_body_bytes), threads),
        threads=threads,
        memory=MemoryBudget(config.max_total_body_bytes),
        max_client_batch_size=config.max_client_batch_size,
    )


def _build_document(pages: Pages) -> dict[str, Any]:
    """Return FastAPI's arguments for the OpenAPI document."""
    return {
        "title": TITLE,
        "summary": SUMMARY,
        "version": __version__,
        "license_info": {"name": "MIT License", "identifier": "MIT"},
        "openapi_url": pages.openapi_url,
        "docs_url": None,
        "redoc_url": None,
    }


def _build_routes(
    config: ServerConfig,
    context: ServerContext,
    pages: Pages,
    registry: CollectorRegistry,
    endpoints: Sequence[Endpoint],
    *,
    has_keys: bool,
) -> list[BaseRoute]:
    """Make all routes, in the order of the document."""
    open_endpoints = [
        *HEALTH_ENDPOINTS,
        *([make_metrics_endpoint(registry)] if config.metrics != "off" else []),
        *pages.list_endpoints(),
    ]
    protected = [
        *make_routes(endpoints, context, prefix=config.url_prefix, needs_key=has_keys),
        *(
            make_routes(ADMIN_ENDPOINTS, context, prefix=config.url_prefix, needs_key=True)
            if config.admin_key
            else []
        ),
    ]
    return [*protected, *make_routes(open_endpoints, context, prefix=config.url_prefix, needs_key=False)]


def _build_middleware(
    config: ServerConfig, keys: ApiKeys | None, pages: Pages, metrics: HTTPMetrics, tracing: Tracing | None
) -> list[Middleware]:
    """List the middleware, outermost first; the outer ones see every response."""
    middleware = [
        Middleware(RequestIdMiddleware),
        *([tracing.middleware(PROBE_PATHS)] if tracing is not None else []),
        Middleware(HTTPMetricsMiddleware, metrics=metrics),
    ]
    if config.permissive_cors or config.cors_origins:
        everything = ["*"]
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=everything if config.permissive_cors else config.cors_origins,
                allow_methods=everything,
                allow_headers=everything,
                allow_private_network=True,
                expose_headers=["x-request-id", "server-timing", *RETRY_HEADERS],
            )
        )
    middleware.append(Middleware(UnexpectedErrorMiddleware))
    admin_keys = ApiKeys.from_admin_key(config)
    if keys is not None or admin_keys is not None:
        metrics_path = [METRICS_PATH] if config.metrics == "open" else []
        middleware.append(
            Middleware(
                ApiKeyMiddleware,
                api_keys=keys,
                open_paths=[*OPEN_PATHS, *pages.paths, *metrics_path],
                error_formats=map_error_formats(API_ENDPOINTS, config.url_prefix),
                admin_keys=admin_keys,
                admin_path=config.url_prefix + ADMIN_PATH,
            )
        )
    return middleware


def _make_lifespan(
    models: ServedModels,
    tracing: Tracing | None,
    batches: BatchService | None,
    *,
    preload_only: bool,
    documents_at_start: bool,
) -> Lifespan[ServerApp]:
    @asynccontextmanager
    async def lifespan(app: ServerApp) -> AsyncIterator[None]:
        if documents_at_start and app.openapi_url:
            app.openapi()  # includes routes that users have added to the app
        async with models.running() as array, tracing or nullcontext():
            app.engine_array = array
            app.disable_unused_telemetry()
            if preload_only:
                _stop_soon()
            async with batches.running(app) if batches else nullcontext():
                yield

    return lifespan


def _stop_soon() -> None:
    """Stop the process as Ctrl-C would, once the server that runs the app has started."""
    logger.info("all models loaded; exiting (--preload-only)")
    asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)


def _register_collectors(registry: CollectorRegistry, metrics: HTTPMetrics, models: ServedModels) -> None:
    registry.register(metrics)
    registry.register(ModelCollector(models))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
