"""Paths behind a proxy, and paths with superfluous slashes.

The API key middleware and the router both normalize paths here, so they see the same path.
"""

from __future__ import annotations

import re

from starlette.types import Scope

_SLASHES = re.compile("//+")


def strip_root_path(scope: Scope) -> str:
    """Return the path without the proxy's prefix and superfluous slashes."""
    path: str = scope["path"]
    if "//" in path or path.endswith("/"):
        path = remove_slashes(path)
    root = scope.get("root_path", "")
    return (path.removeprefix(root) or "/") if path == root or path.startswith(f"{root}/") else path


def remove_slashes(path: str) -> str:
    """Remove doubled slashes, and one at the end.

    Base URLs of clients end with one. A redirect would turn a POST into a GET, or lead past a proxy.
    """
    return _SLASHES.sub("/", path).removesuffix("/") or "/"
