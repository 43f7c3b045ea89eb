"""The Swagger page at `{prefix}/docs`, with assets from an installed package; works behind a proxy."""

from __future__ import annotations

import functools
import mimetypes
from importlib.resources import files

from fastapi.openapi.docs import get_swagger_ui_html
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from infinity_emb.server.requests.call import Call
from infinity_emb.server.responses.error_docs import Errors
from infinity_emb.server.routing import Endpoint, Form, Handler

ASSETS = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png")
# Without the badge that sends the document to validator.swagger.io.
PARAMETERS = {"validatorUrl": None, "displayRequestDuration": True, "tryItOutEnabled": True}


class DocsPage:
    """The page and its assets."""

    def __init__(self, prefix: str, *, is_served: bool = True) -> None:
        self._is_served = is_served
        self.url = f"{prefix}/docs"
        self.openapi_url = f"{prefix}/openapi.json" if is_served else None

    @property
    def paths(self) -> list[str]:
        """Every path that the page needs."""
        if self.openapi_url is None:
            return []
        return [self.url, self.openapi_url, *(f"{self.url}/{name}" for name in ASSETS)]

    def list_endpoints(self) -> list[Endpoint]:
        """List the endpoints of the page; FastAPI serves the document itself."""
        if not self._is_served:
            return []
        return [
            make_page_endpoint(self.url, self.page),
            make_page_endpoint(f"{self.url}/{{name}}", self.asset),
        ]

    async def page(self, call: Call) -> Response:
        """Return the HTML."""
        root = get_root_path(call.request)
        script, style, icon = (f"{root}{self.url}/{name}" for name in ASSETS)
        return get_swagger_ui_html(
            openapi_url=f"{root}{self.openapi_url}",
            title=call.request.app.title,
            swagger_js_url=script,
            swagger_css_url=style,
            swagger_favicon_url=icon,
            swagger_ui_parameters=PARAMETERS,
        )

    async def asset(self, call: Call) -> Response:
        """Return a script, style sheet or icon."""
        name = call.request.path_params["name"]
        if name not in ASSETS:
            raise HTTPException(404)
        media_type, _ = mimetypes.guess_type(name)
        return Response(
            _read_asset(name), media_type=media_type, headers={"Cache-Control": "public, max-age=86400"}
        )


@functools.cache
def _read_asset(name: str) -> bytes:
    """Read an asset once; hundreds of requests would otherwise block the event loop for seconds."""
    return (files("fastapi_swagger") / "resources" / name).read_bytes()


def get_root_path(request: Request) -> str:
    """Return the path at which a proxy exposes this server."""
    root: str = request.scope.get("root_path", "")
    return root.rstrip("/")


def make_page_endpoint(path: str, handler: Handler) -> Endpoint:
    """Make the endpoint of a page for people, which OpenAPI does not document."""
    form = Form(handler, None, None, errors=Errors({}))
    return Endpoint(path, [form], method="GET", is_prefixed=False, is_documented=False)
