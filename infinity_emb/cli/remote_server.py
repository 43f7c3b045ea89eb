"""Query a running server over HTTP, with one-line errors if it cannot be reached."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import urllib.error
import urllib.request
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from infinity_emb.errors import StartupError, one_line

KEY_VARIABLE = "INFINITY_API_KEY"
_MAX_RESPONSE_BYTES = 64 * 2**20
_MAX_SHOWN = 80


class Response(NamedTuple):
    """A response other than 401 and 403."""

    status: int
    text: str


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the URL of a server and its API key."""
    parser.add_argument("url", metavar="URL", help="address of the server, such as http://localhost:7997")
    parser.add_argument(
        "--api-key",
        metavar="KEY",
        help=f"API key of the server [{KEY_VARIABLE}]",
        default=os.environ.get(KEY_VARIABLE),
    )


class RemoteServer:
    """A server at a URL, which may have a path and lack the scheme."""

    def __init__(self, url: str, api_key: str | None = None, *, timeout_s: float = 5) -> None:
        self.url = _complete(url)
        self.api_key = api_key
        self._timeout_s = timeout_s

    @property
    def origin(self) -> str:
        """The URL without a path."""
        scheme, address, *_ = urlsplit(self.url)
        return f"{scheme}://{address}"

    def get(self, path: str, *, at_origin: bool = False) -> Response:
        """Send a GET request. Raises StartupError without a response, and for a refused key."""
        url = (self.origin if at_origin else self.url) + path
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        try:
            request = urllib.request.Request(url, headers=headers)
            with urllib.request.urlopen(request, timeout=self._timeout_s) as response:
                return Response(response.status, response.read(_MAX_RESPONSE_BYTES).decode(errors="replace"))
        except urllib.error.HTTPError as exc:
            with exc:
                text = exc.read(_MAX_RESPONSE_BYTES).decode(errors="replace")
            if exc.code in (401, 403):
                raise StartupError(self._explain_refusal(exc.code)) from exc
            return Response(exc.code, text)
        except (OSError, http.client.HTTPException, ValueError) as exc:
            reason = exc.reason if isinstance(exc, urllib.error.URLError) else exc
            raise StartupError(
                f"cannot reach {url} ({one_line(reason)}); check the address, and that the server is running"
            ) from exc

    def get_json(self, path: str) -> Any:
        """Get JSON. Raises StartupError for any other response as well."""
        status, text = self.get(path)
        try:
            if status == 200:
                return json.loads(text)
            reason = f"returned {status}"
        except ValueError:
            reason = "is not JSON"
        raise StartupError(
            f"{self.url}{path} {reason}: {one_line(text, _MAX_SHOWN)!r}; is this the address of a"
            " model server?"
        )

    def _explain_refusal(self, status: int) -> str:
        if self.api_key:
            return f"{self.url} refuses this API key ({status}); give a valid one with --api-key"
        return f"{self.url} asks for an API key ({status}); give it with --api-key or {KEY_VARIABLE}"


def _complete(url: str) -> str:
    full = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(full)
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_valid = False
    if not is_valid:
        raise StartupError(f"{url!r} is not the URL of a server; give one such as http://localhost:7997")
    return full.split("?")[0].split("#")[0].rstrip("/")
