"""The Swagger page at `{prefix}/docs`, with assets from an installed package: nothing comes from elsewhere.

Knows nothing of the routes it shows. Works under a proxy's root path.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response

ASSETS = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png")
# No badge that sends the document to validator.swagger.io.
PARAMETERS = {"validatorUrl": None, "displayRequestDuration": True, "tryItOutEnabled": True}
DEFAULT_REDIRECT = "/docs"


class DocsPage:
    """The page, its assets, and the way to it from `/`; none of them where it is not served."""

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

    def add_to(self, router: APIRouter, *, redirect_from_root: str) -> None:
        """Register the page, and `/` where it shall lead somewhere; FastAPI serves the document itself."""
        if self._is_served:
            router.add_api_route(self.url, self.page, include_in_schema=False)
            router.add_api_route(f"{self.url}/{{name}}", self.asset, include_in_schema=False)
        target = self.url if redirect_from_root == DEFAULT_REDIRECT else redirect_from_root
        if target and (self._is_served or target != self.url):

            async def redirect(request: Request) -> Response:
                return RedirectResponse(root_path_of(request) + target)

            router.add_api_route("/", redirect, include_in_schema=False)

    async def page(self, request: Request) -> Response:
        """The HTML."""
        root = root_path_of(request)
        script, style, icon = (f"{root}{self.url}/{name}" for name in ASSETS)
        return get_swagger_ui_html(
            openapi_url=f"{root}{self.openapi_url}",
            title=request.app.title,
            swagger_js_url=script,
            swagger_css_url=style,
            swagger_favicon_url=icon,
            swagger_ui_parameters=PARAMETERS,
        )

    async def asset(self, name: str) -> Response:
        """Script, style or icon."""
        if name not in ASSETS:
            raise HTTPException(404)
        path = Path(str(files("fastapi_swagger"))) / "resources" / name
        return FileResponse(path, headers={"Cache-Control": "public, max-age=86400"})


def root_path_of(request: Request) -> str:
    """Where a proxy has put this server."""
    root: str = request.scope.get("root_path", "")
    return root.rstrip("/")
