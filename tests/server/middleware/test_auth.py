from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter
from starlette.routing import Route

from infinity_emb.server.dialects.cohere.errors import CohereError
from infinity_emb.server.dialects.ollama.errors import OllamaError
from infinity_emb.server.dialects.tei.errors import TeiError
from infinity_emb.server.schemas.errors import HTTPErrorResponse
from tests.support.tiny_server import build_debug_app, client_of, embed

pytestmark = pytest.mark.anyio

KEY = "sesam-öffne"


def bearer(key: str, scheme: str = "Bearer") -> dict[bytes, bytes]:
    return {b"authorization": f"{scheme} {key}".encode()}


@pytest.mark.parametrize(
    "method_and_path",
    [
        *("POST /embeddings", "POST /v1/embeddings", "GET /models", "POST /rerank", "POST /v1/classify"),
        *("POST /embeddings_image", "POST /v1/embeddings_audio"),
    ],
)
@pytest.mark.parametrize(
    "headers",
    [
        *({}, bearer("wrong"), bearer(""), bearer(KEY, "Basic"), bearer(KEY[:-1]), bearer(KEY + "x")),
        *({b"authorization": b""}, {b"api-key": b""}, {b"api-key": b"wrong"}, {b"x-key": KEY.encode()}),
    ],
)
async def test_without_the_key_it_is_a_401(method_and_path: str, headers: dict[bytes, bytes]) -> None:
    method, path = method_and_path.split()
    async with client_of(build_debug_app(api_key=KEY)) as client:
        response = await client.request(method, path, headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["detail"] == "Unauthorized"
    assert response.json()["error"]["type"] == "authentication_error"


@pytest.mark.parametrize(
    "headers",
    [
        *(bearer(KEY), bearer(KEY, "bearer"), bearer(f" {KEY} ")),
        {b"authorization": KEY.encode()},  # llama-index, as a client of Text Embeddings Inference
        {b"api-key": KEY.encode()},  # AzureOpenAI
        bearer("wrong") | {b"api-key": KEY.encode()},
    ],
)
async def test_with_the_key_it_serves(headers: dict[bytes, bytes]) -> None:
    async with client_of(build_debug_app(api_key=KEY), headers=headers) as client:
        assert (await embed(client)).status_code == 200
        assert (await client.get("/v1/models/debug")).status_code == 200


@pytest.mark.parametrize("num_others", [1, 2, 197])
async def test_a_key_is_looked_for_in_two_headers_at_most(num_others: int) -> None:
    """Each of hundreds was compared with each known key, before anything else."""
    others = [(b"api-key", b"wrong")] * num_others
    right = (b"authorization", b"Bearer secret")
    async with client_of(build_debug_app(api_key="secret")) as client:
        for headers in ([right, *others], [*others, right]):
            response = await client.get("/models", headers=headers)
            assert response.status_code == (200 if num_others == 1 else 401)
            assert num_others == 1 or "send one header" in response.json()["error"]["message"]


async def test_each_of_several_keys_opens(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("third-key\n")
    app = build_debug_app(api_key=("first", "second"), api_key_file=str(path))
    async with client_of(app) as client:
        statuses = [
            (await client.get("/models", headers=bearer(key))).status_code
            for key in ("first", "second", "third-key", "first,second", "fourth")
        ]
    assert statuses == [200, 200, 200, 401, 401]


async def test_a_key_file_alone_closes_the_api(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("secret-key\n")
    async with client_of(build_debug_app(api_key_file=str(path))) as client:
        assert (await embed(client)).status_code == 401
        assert (await client.get("/models", headers=bearer("secret-key"))).status_code == 200


@pytest.mark.parametrize("prefix", ["", "/api", "/v1"])
async def test_a_dialect_is_told_in_its_own_shape(prefix: str) -> None:
    shapes: dict[str, Any] = {
        "/embeddings": HTTPErrorResponse,
        "/rerank": HTTPErrorResponse,
        "/embed": TeiError,
        "/embed_sparse": TeiError,
        "/info": TeiError,
        "/": TeiError,
        "/v1/embed": CohereError,
        "/v2/rerank": CohereError,
        "/api/embed": OllamaError,
        "/api/tags": OllamaError,
    }
    app = build_debug_app(api_key=KEY, url_prefix=prefix, proxy_root_path="/proxy")
    async with client_of(app) as client:
        for path, shape in shapes.items():
            for root in ("", "/proxy"):
                method = "GET" if path in ("/info", "/api/tags") else "POST"
                url = f"{root}{prefix}{path.rstrip('/') if prefix else path}"
                response = await client.request(method, url)
                assert response.status_code == 401, url
                assert response.headers["x-should-retry"] == "false"
                adapter = TypeAdapter(shape)
                parsed = adapter.validate_json(response.content, strict=True)
                assert adapter.dump_python(parsed, mode="json") == response.json(), url
                assert "the API key is missing or wrong" in response.text


async def test_the_key_is_asked_for_before_any_of_the_body_is_read() -> None:
    """However large it is, and also where it is sent in chunks without an end."""
    app = build_debug_app(api_key=KEY)
    routes = [route for route in app.routes if isinstance(route, Route)]
    paths = [route.path for route in routes if "POST" in (route.methods or ())]
    assert len(paths) > 15
    for path in paths:
        for headers in ([(b"content-length", b"%d" % 2**40)], [(b"transfer-encoding", b"chunked")]):
            sent: list[Any] = []
            scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "app": app}
            await app(scope, _refuse_to_receive, _appender(sent))
            assert sent[0]["status"] == 401


async def _refuse_to_receive() -> Any:
    raise AssertionError("the body was read")


def _appender(sent: list[Any]) -> Any:
    async def send(message: Any) -> None:
        sent.append(message)

    return send


@pytest.mark.parametrize("prefix", ["", "/api"])
async def test_probes_metrics_and_pages_are_open(prefix: str) -> None:
    app = build_debug_app(api_key=KEY, url_prefix=prefix, proxy_root_path="/proxy")
    async with client_of(app) as client:
        for path in (
            "/health",
            "/ready",
            "/metrics",
            f"{prefix}/docs",
            f"{prefix}/openapi.json",
            f"{prefix}/ui",
        ):
            assert (await client.get(path)).status_code == 200
            assert (await client.get(f"/proxy{path}")).status_code == 200
        for path in ("/docs/swagger-ui.css", "/ui/app.js"):
            assert (await client.get(prefix + path)).status_code == 200
        assert (await client.get("/")).status_code == 307


async def test_the_guide_names_every_open_path() -> None:
    guide = (Path(__file__).parents[3] / "docs" / "operating.md").read_text(encoding="utf-8")
    section = guide.partition("## API keys\n")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")]
    named = {word.removeprefix("GET ") for cell in cells for word in re.findall("`(.+?)`", cell)}
    app = build_debug_app(api_key=KEY)
    paths = {getattr(route, "path", "") for route in app.routes if "GET" in getattr(route, "methods", ())}
    async with client_of(app) as client:
        is_open = {path for path in paths if (await client.get(path)).status_code != 401}
    assert named == is_open


async def test_a_path_that_is_not_declared_open_is_closed() -> None:
    """A route that somebody adds later must not be open because somebody forgot to close it."""
    app = build_debug_app(api_key=KEY)
    app.add_api_route("/later", lambda: "open")
    async with client_of(app) as client:
        for path in ("/later", "/docs/later", "/health/later", "/healthy"):
            assert (await client.get(path)).status_code == 401


async def test_without_a_configured_key_everybody_is_let_in(client: httpx.AsyncClient) -> None:
    assert (await client.post("/embeddings", json={"input": "a"}, headers=bearer("any"))).status_code == 200
