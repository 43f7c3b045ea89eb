"""The console script `infinity_emb`.

A start that fails, or a device that is lost, ends with one line on stderr and exit code 1, never with a
traceback.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from infinity_emb.errors import EngineNotReady, StartupError, one_line

COMMANDS = ("v1", "v2", "verify", "profile", "models", "top", "bench", "embed", "rerank", "classify")
_OWN_OPTIONS = ("-h", "--help", "--version", "--show-completion", "--install-completion")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code. Raises SystemExit(2) for a usage error."""
    from infinity_emb.cli.commands import run_command

    arguments = insert_command(sys.argv[1:] if argv is None else argv)
    try:
        return run_command(arguments)
    except (StartupError, EngineNotReady) as exc:
        sys.stderr.write(f"error: {one_line(exc)}\n")
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def insert_command(arguments: Sequence[str]) -> list[str]:
    """Insert `v2` unless the first word is a command; read `help v2` as `v2 --help`."""
    match list(arguments):
        case ["help", *rest]:
            return [*rest, "--help"]
        case [first, *rest] if first in COMMANDS or first.partition("=")[0] in _OWN_OPTIONS:
            return [first, *rest]
        case rest:
            return ["v2", *rest]
