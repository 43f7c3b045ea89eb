"""Check the health of the server in this container, for the image's HEALTHCHECK.

    python -m infinity_emb.cli.health_check

Exits with 0 if `/health` responds with 200. The address comes from the flags of process 1 or the environment.
"""

from __future__ import annotations

import os
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from infinity_emb.cli import insert_command
from infinity_emb.cli.parser import build_parser
from infinity_emb.config.environment import collect_given
from infinity_emb.config.server_config import ServerConfig

# With `docker run --init`, process 1 is Docker's and has the image's entry point among its arguments.
_PROGRAMS = ("infinity_emb", "entrypoint.sh")
_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}
_TIMEOUT_S = 4


def main() -> int:
    """Ask the server, and return the exit code."""
    command_line = Path("/proc/1/cmdline").read_bytes().decode(errors="replace").split("\0")
    url = find_health_url(command_line, os.environ)
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S):
            return 0
    except OSError as exc:
        sys.stderr.write(f"{url}: {exc}\n")
        return 1


def find_health_url(command_line: Sequence[str], environ: Mapping[str, str]) -> str:
    """Return the URL of `/health` of a server with this command line and environment."""
    programs = [index for index, word in enumerate(command_line) if Path(word).name in _PROGRAMS]
    arguments = [word for word in command_line[programs[0] + 1 :] if word] if programs else []
    _, flags = build_parser().parse(insert_command(arguments))
    config = ServerConfig.from_given(collect_given(ServerConfig, flags, environ, is_per_model=False))
    return f"http://{_EVERY_ADDRESS.get(config.host, config.host)}:{config.port}/health"


if __name__ == "__main__":
    sys.exit(main())
