"""The page at `{prefix}/ui`: a playground, the models and live figures, from the files in `server/ui/`.

It calls the public API from the browser. Its links are relative, so that it works behind every proxy.
"""

from __future__ import annotations

import hashlib
import html
import json
from importlib.resources import files
from typing import NamedTuple

from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from infinity_emb.config.server_config import ServerConfig
from infinity_emb.server.requests.call import Call
from infinity_emb.server.routes.docs import make_page_endpoint
from infinity_emb.server.routing import Endpoint

PAGE = "index.html"
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
# Nothing is loaded from elsewhere, the HTML has no inline script or style, and no text becomes HTML.
SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script';"
    " trusted-types 'none'"
)
_HEADERS = {
    # Browsers ask whether a file has changed, so that an upgrade never mixes its scripts with old ones.
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": SECURITY_POLICY,
}


class Asset(NamedTuple):
    """A file of the page."""

    content: bytes
    media_type: str
    etag: str


class UiPage:
    """The page and its assets, which are held in memory."""

    def __init__(self, config: ServerConfig) -> None:
        self.url = f"{config.url_prefix}/ui"
        self._assets = {
            file.name: _make_asset(file.name, file.read_bytes())
            for file in (files("infinity_emb.server") / "ui").iterdir()
        }
        html_bytes, *_ = self._assets.pop(PAGE)
        self._page = _make_asset(PAGE, html_bytes.replace(b"{{server}}", _describe_server(config)))
        self.paths = [self.url, *(f"{self.url}/{name}" for name in self._assets)]

    def list_endpoints(self) -> list[Endpoint]:
        """List the endpoints of the page."""
        return [
            make_page_endpoint(self.url, self.page),
            make_page_endpoint(f"{self.url}/{{name}}", self.asset),
        ]

    async def page(self, call: Call) -> Response:
        """Return the HTML; its links are relative to a path without a slash at its end."""
        path: str = call.request.scope["path"]
        if path.endswith("/"):
            return RedirectResponse("../" * (len(path) - len(path.rstrip("/"))) + "ui")
        return _respond(self._page, call)

    async def asset(self, call: Call) -> Response:
        """Return a script, style sheet or icon."""
        asset = self._assets.get(call.request.path_params["name"])
        if asset is None:
            raise HTTPException(404)
        return _respond(asset, call)


def _respond(asset: Asset, call: Call) -> Response:
    headers = {**_HEADERS, "ETag": asset.etag}
    if asset.etag in call.request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(asset.content, media_type=asset.media_type, headers=headers)


def _describe_server(config: ServerConfig) -> bytes:
    """Return what the page cannot learn from the API, as JSON for an attribute."""
    parts = {"hasAdmin": config.admin_key, "hasMetrics": config.metrics != "off", "hasDocs": config.docs}
    values = {name: bool(value) for name, value in parts.items()}
    return html.escape(json.dumps({"prefix": config.url_prefix, **values})).encode()


def _make_asset(name: str, content: bytes) -> Asset:
    etag = f'"{hashlib.blake2b(content, digest_size=12).hexdigest()}"'
    return Asset(content, MEDIA_TYPES[name[name.rindex(".") :]], etag)
