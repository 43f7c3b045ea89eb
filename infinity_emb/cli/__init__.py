"""The console script: which words are commands, and how a failed start looks.

A start that cannot succeed, and a device that is lost, is one line on stderr and exit code 1, never a
traceback. Knows no option; those
are in `cli/commands.py`, which needs the extra `server` and is imported on demand to say so.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from infinity_emb.errors import EngineNotReady, StartupError, one_line

COMMANDS = ("v1", "v2", "verify")
_INSTALL = "install it with: pip install 'infinity-emb[server]'"
_OWN_OPTIONS = ("-h", "--help", "--version", "--show-completion", "--install-completion")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; a command line with a usage error raises SystemExit(2)."""
    arguments = insert_command(sys.argv[1:] if argv is None else argv)
    try:
        from infinity_emb.cli.commands import app
    except ImportError as exc:
        return _fail(f"infinity_emb needs a package that is not installed ({exc}); {_INSTALL}")
    try:
        app(args=arguments, prog_name="infinity_emb")
    except (StartupError, EngineNotReady) as exc:
        return _fail(one_line(exc))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def insert_command(arguments: Sequence[str]) -> list[str]:
    """`v2` where the first word is no command; `help v2` as `v2 --help`."""
    match list(arguments):
        case ["help", *rest]:
            return [*rest, "--help"]
        case [first, *rest] if first in COMMANDS or first in _OWN_OPTIONS:
            return [first, *rest]
        case rest:
            return ["v2", *rest]


def _fail(message: str) -> int:
    sys.stderr.write(f"error: {message}\n")
    return 1
