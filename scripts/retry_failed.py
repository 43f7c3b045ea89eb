"""Try the tests again that failed in the last run, if they are few: `python -m scripts.retry_failed`.

Tests of signals, faults, clocks and browsers fail at times on a machine that others use too. The exit code is
0 if all pass now, where no other test runs beside them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

MAX_TESTS = 5
LAST_FAILED = Path(__file__).resolve().parents[1] / ".pytest_cache" / "v" / "cache" / "lastfailed"


def main() -> int:
    """Print and run the tests; return the exit code."""
    tests: list[str] = list(json.loads(LAST_FAILED.read_text())) if LAST_FAILED.exists() else []
    print(f"{len(tests)} tests failed:", *tests, sep="\n", flush=True)
    if not 0 < len(tests) <= MAX_TESTS:
        return 1
    return subprocess.call([sys.executable, "-m", "pytest", "--verbose", *tests])


if __name__ == "__main__":
    sys.exit(main())
