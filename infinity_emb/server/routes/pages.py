"""The pages for people, and the redirect from `/` to one of them."""

from __future__ import annotations

from starlette.responses import RedirectResponse, Response

from infinity_emb.config.server_config import ServerConfig
from infinity_emb.server.requests.call import Call
from infinity_emb.server.routes.docs import DocsPage, get_root_path, make_page_endpoint
from infinity_emb.server.routes.ui import UiPage
from infinity_emb.server.routing import Endpoint


class Pages:
    """The pages that a server has."""

    def __init__(self, config: ServerConfig) -> None:
        docs = DocsPage(config.url_prefix, is_served=config.docs)
        self._pages: list[DocsPage | UiPage] = [docs, *([UiPage(config)] if config.ui else [])]
        self._root_target = _choose_root_target(config)
        self.openapi_url = docs.openapi_url
        self.paths = [path for page in self._pages for path in page.paths]

    def list_endpoints(self) -> list[Endpoint]:
        """List the endpoints of the pages, and `/` if it redirects."""
        endpoints = [endpoint for page in self._pages for endpoint in page.list_endpoints()]
        if self._root_target:
            endpoints.append(make_page_endpoint("/", self.redirect))
        return endpoints

    async def redirect(self, call: Call) -> Response:
        """Send people from `/` to a page."""
        return RedirectResponse(get_root_path(call.request) + self._root_target)


def _choose_root_target(config: ServerConfig) -> str:
    """Return the path that `/` redirects to, or "".

    `/ui` and `/docs` are below the prefix, and redirect only if the page is served. `/ui` is the default:
    without that page, `/` redirects to the documentation.
    """
    target = config.redirect_slash
    if target == "/ui" and not config.ui:
        target = "/docs"
    if target in ("/ui", "/docs"):
        return config.url_prefix + target if target == "/ui" or config.docs else ""
    return target
