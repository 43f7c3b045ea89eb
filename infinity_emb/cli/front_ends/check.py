"""Refuse options at start that several front ends do not support."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.config.server_config import ServerConfig
from infinity_emb.errors import StartupError


def check_front_ends(engine_args: Sequence[EngineArgs], config: ServerConfig) -> None:
    """Raise StartupError for options that need everything in one process, if there are several."""
    if config.api_servers == 1:
        return
    if sys.platform != "linux":
        raise StartupError(f"--api-servers {config.api_servers} needs Linux; start with --api-servers 1")
    given = {
        "--admin-key": bool(config.admin_key),
        "--batch-dir": bool(config.batch_dir),
        "--idle-unload-s": any(args.idle_unload_s for args in engine_args),
    }
    if excluded := [flag for flag, is_given in given.items() if is_given]:
        raise StartupError(
            f"--api-servers {config.api_servers} cannot be combined with {', '.join(excluded)}, which needs"
            " everything in one process; leave it out, or start with --api-servers 1"
        )
