from __future__ import annotations

import asyncio
import signal
import threading

import httpx
import pytest

import infinity_emb
from infinity_emb.config.server_config import ServerConfig
from infinity_emb.engine.array import AsyncEngineArray
from infinity_emb.errors import EngineNotReady, StartupError
from infinity_emb.server.app import build_app, create_server
from tests.support.tiny_server import build_debug_app, client_of, debug_args, embed

pytestmark = pytest.mark.anyio


async def test_create_server_loads_its_models_when_it_starts() -> None:
    app = infinity_emb.create_server(engine_args_list=[debug_args()])
    assert not hasattr(app, "engine_array")
    async with client_of(app) as client:
        assert app.engine_array["debug"].is_running
        assert (await embed(client)).status_code == 200
    assert not app.engine_array.is_running()


async def test_create_server_takes_the_options_of_infinity() -> None:
    app = create_server(
        engine_args_list=[debug_args()],
        url_prefix="/api",
        doc_extra={"host": "localhost", "port": 7997},
        redirect_slash="/api/models",
        preload_only=False,
        permissive_cors=True,
        api_key="key",
        proxy_root_path="/proxy",
    )
    async with client_of(app, headers={"authorization": "Bearer key"}) as client:
        response = await client.post(
            "/api/v1/embeddings", json={"input": "a"}, headers={"origin": "http://a"}
        )
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] in ("*", "http://a")
        assert (await client.get("/")).headers["location"] == "/proxy/api/models"


async def test_the_openapi_document_is_made_before_the_server_listens() -> None:
    """The first request for it held the event loop."""
    app = create_server(engine_args_list=[debug_args()], url_prefix="/api")

    @app.get("/added")
    async def added() -> str:
        return "added"

    async with app.router.lifespan_context(app):
        assert app.openapi_schema is not None
        assert {"/added", "/api/embeddings"} <= app.openapi_schema["paths"].keys()


async def test_engines_are_loaded_off_the_event_loop() -> None:
    threads: list[threading.Thread] = []

    def load() -> AsyncEngineArray:
        threads.append(threading.current_thread())
        return AsyncEngineArray.from_args([debug_args()])

    async with client_of(build_app(load, ServerConfig())) as client:
        assert (await embed(client)).status_code == 200
    assert threads != [threading.main_thread()]


async def test_a_model_that_cannot_be_loaded_stops_the_start() -> None:
    app = create_server(engine_args_list=[debug_args("debug?no_such_fault=1")])
    with pytest.raises(StartupError, match="no_such_fault"):
        async with client_of(app):
            pass


async def test_engines_that_started_are_stopped_when_another_does_not_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engines = AsyncEngineArray.from_args([debug_args("first"), debug_args("second")])

    async def fail_to_start() -> None:
        raise EngineNotReady("a worker thread is still running")

    monkeypatch.setattr(engines["second"], "astart", fail_to_start)
    with pytest.raises(EngineNotReady):
        async with client_of(build_app(engines, ServerConfig())):
            pass
    assert not any(engine.is_running for engine in engines)


@pytest.mark.parametrize(
    ("prefix", "paths"),
    [
        ("", ["/embeddings", "/v1/embeddings"]),
        ("/", ["/embeddings", "/v1/embeddings"]),
        ("/api", ["/api/embeddings", "/api/v1/embeddings"]),
        ("/v1", ["/v1/embeddings"]),
        ("/api/v1", ["/api/v1/embeddings"]),
    ],
)
async def test_a_prefix_moves_the_routes_and_v1_stands_once(prefix: str, paths: list[str]) -> None:
    app = build_debug_app(url_prefix=prefix)
    async with client_of(app) as client:
        for path in paths:
            assert (await client.post(path, json={"input": "a"})).status_code == 200
            models = path.replace("embeddings", "models")
            assert (await client.get(models)).status_code == 200
            assert (await client.get(f"{models}/debug")).status_code == 200
        served = {
            path
            for path in (getattr(route, "path", "") for route in app.routes)
            if path.endswith("embeddings") and "/openai/" not in path
        }
    ollama = f"{prefix.rstrip('/')}/api/embeddings"
    assert {path for path in served if path.endswith("/embeddings")} == {*paths, ollama}


async def test_two_apps_serve_in_one_process() -> None:
    async with (
        client_of(build_debug_app(debug_args("one"))) as first,
        client_of(build_debug_app(debug_args("two"))) as second,
    ):
        assert (await embed(first)).json()["model"] == "one"
        assert (await embed(second)).json()["model"] == "two"


async def test_an_app_can_start_again() -> None:
    app = build_debug_app()
    for _ in range(2):
        async with client_of(app) as client:
            assert (await embed(client)).status_code == 200


async def test_accepted_requests_are_finished_on_shutdown() -> None:
    app = build_debug_app(debug_args("debug?delay_s=0.1"))
    async with client_of(app) as client:
        accepted = asyncio.create_task(embed(client))
        await asyncio.sleep(0.03)
        await asyncio.gather(*(engine.astop() for engine in app.engine_array))
        assert (await embed(client)).status_code == 503
        assert (await accepted).status_code == 200


async def test_what_is_not_finished_within_the_deadline_fails() -> None:
    app = build_debug_app(debug_args("debug?delay_s=0.3", batch_size=1), shutdown_timeout_s=0)
    lifespan = app.router.lifespan_context(app)
    await lifespan.__aenter__()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        accepted = asyncio.create_task(embed(client, ["a", "b", "c"]))
        await asyncio.sleep(0.05)
        await lifespan.__aexit__(None, None, None)
        response = await accepted
    assert response.status_code == 503
    assert "not finished in time" in response.json()["error"]["message"]


@pytest.mark.parametrize("origin", ["http://a", "null"])
async def test_browsers_of_every_origin_are_let_in_only_where_asked_for(origin: str) -> None:
    """Without credentials: a page of any origin must not use what a browser has stored for this one."""
    preflight = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-lang",
        "access-control-request-private-network": "true",
    }
    async with client_of(build_debug_app(permissive_cors=True, api_key="key")) as client:
        allowed = await client.options("/embeddings", headers=preflight)
        refused = await client.post("/embeddings", headers={"origin": origin, "cookie": "a=b"})
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-private-network"] == "true"
    assert "authorization" in allowed.headers["access-control-allow-headers"]
    assert refused.status_code == 401
    for response in (allowed, refused):
        assert response.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in response.headers
    assert "x-request-id" in allowed.headers
    exposed = refused.headers["access-control-expose-headers"].lower()
    assert exposed == "x-request-id, server-timing, retry-after, retry-after-ms, x-should-retry"
    async with client_of(build_debug_app()) as client:
        response = await client.post("/embeddings", json={"input": "a"}, headers={"origin": "http://a"})
    assert "access-control-allow-origin" not in response.headers


async def test_browsers_of_listed_origins_are_let_in_and_no_others() -> None:
    """There were all origins or none."""
    origins = ["https://app.example.com", "http://localhost:3000"]
    app = build_debug_app(cors_origins=origins, api_key="key")
    headers = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    async with client_of(app) as client:
        for origin in origins:
            allowed = await client.options("/embeddings", headers={**headers, "origin": origin})
            assert allowed.status_code == 200
            assert "authorization" in allowed.headers["access-control-allow-headers"]
            response = await client.post("/embeddings", headers={"origin": origin, "cookie": "a=b"})
            for each in (allowed, response):
                assert each.headers["access-control-allow-origin"] == origin
                assert "Origin" in each.headers["vary"]
                assert "access-control-allow-credentials" not in each.headers
        for origin in ("https://app.example.com.evil", "http://app.example.com", "http://localhost", "null"):
            refused = await client.options("/embeddings", headers={**headers, "origin": origin})
            response = await client.get("/health", headers={"origin": origin})
            assert refused.status_code == 400
            for each in (refused, response):
                assert "access-control-allow-origin" not in each.headers


@pytest.mark.parametrize(
    "origin", ["*", "app.example.com", "https://a.example/", "https://A.example", "null"]
)
def test_an_origin_that_no_browser_sends_is_refused(origin: str) -> None:
    with pytest.raises(StartupError, match=r"--permissive-cors|app\.example\.com"):
        ServerConfig(cors_origins=[origin])


async def test_preload_only_asks_the_process_to_stop_once_everything_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raised: list[int] = []
    monkeypatch.setattr(signal, "raise_signal", raised.append)
    app = create_server(engine_args_list=[debug_args()], preload_only=True)
    async with client_of(app):
        assert app.engine_array.is_running()
        await asyncio.sleep(0)
    assert raised == [signal.SIGINT]


@pytest.mark.parametrize("key", ["one", ["one", "two"]])
async def test_create_server_takes_one_key_or_several(key: str | list[str]) -> None:
    async with client_of(create_server(engine_args_list=[debug_args()], api_key=key)) as client:
        assert (await client.get("/models", headers={"authorization": "Bearer one"})).status_code == 200
        second = await client.get("/models", headers={"authorization": "Bearer two"})
        assert second.status_code == (401 if key == "one" else 200)
