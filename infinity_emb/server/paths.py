"""A request's path behind a proxy's prefix. Knows nothing of routes."""

from __future__ import annotations

from starlette.types import Scope


def path_within(scope: Scope) -> str:
    """As the router reads it, so that no path is another one there."""
    path: str = scope["path"]
    root = scope.get("root_path", "")
    return path.removeprefix(root) if path == root or path.startswith(f"{root}/") else path
