"""Load a server with wrk, a compiled program."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

# For a server that answers late, after the seconds of the load.
_EXTRA_S = 60


def is_installed() -> bool:
    """Return whether the program is there."""
    return shutil.which("wrk") is not None


def run_wrk(url: str, script: Path, *, num_clients: int, seconds: float) -> str:
    """Send requests from one thread in a closed loop, and return what wrk prints.

    script: in Lua; it makes the requests.
    Raises RuntimeError where the server refuses some.
    """
    load = ["-t1", f"-c{num_clients}", f"-d{seconds}s", "--timeout", str(_EXTRA_S)]
    done = subprocess.run(
        ["wrk", *load, "-s", str(script), url],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=seconds + 2 * _EXTRA_S,
    )
    if "Non-2xx" in done.stdout:
        raise RuntimeError(f"the server refused requests:\n{done.stdout}")
    return done.stdout
