"""Refuse several front ends at start where they do not work."""

from __future__ import annotations

import sys

from infinity_emb.config.server_config import ServerConfig
from infinity_emb.errors import StartupError


def check_front_ends(config: ServerConfig) -> None:
    """Raise StartupError for several front ends on another system than Linux."""
    if config.api_servers > 1 and sys.platform != "linux":
        raise StartupError(f"--api-servers {config.api_servers} needs Linux; start with --api-servers 1")
