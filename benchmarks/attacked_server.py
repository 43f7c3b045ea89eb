"""Run `infinity_emb` with a heartbeat in its event loop.

    HEARTBEAT=path python -m benchmarks.attacked_server v2 …

Every tenth of a second the file gets the longest time for which the loop was held since the file was emptied,
and the longest processor time between two beats: on a busy machine the former counts other processes too.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

from infinity_emb.cli import main
from infinity_emb.cli.uvicorn_server import UvicornServer

BEAT_S = 0.005
BEATS_PER_WRITE = 20


class HeartbeatServer(UvicornServer):
    """A server that measures how late its event loop wakes up."""

    async def main_loop(self) -> None:
        """Serve, and measure meanwhile."""
        beating = asyncio.create_task(_beat(Path(os.environ["HEARTBEAT"])))
        try:
            await super().main_loop()
        finally:
            beating.cancel()


async def _beat(path: Path) -> None:
    longest_s = longest_cpu_s = 0.0
    while True:
        for _ in range(BEATS_PER_WRITE):
            started_s, started_cpu_s = time.monotonic(), time.thread_time()
            await asyncio.sleep(BEAT_S)
            longest_s = max(longest_s, time.monotonic() - started_s - BEAT_S)
            longest_cpu_s = max(longest_cpu_s, time.thread_time() - started_cpu_s)
        if _is_empty(path):
            longest_s = longest_cpu_s = 0.0
        _write(path, f"{longest_s:.4f} {longest_cpu_s:.4f}")


def _is_empty(path: Path) -> bool:
    return path.stat().st_size == 0


def _write(path: Path, text: str) -> None:
    path.write_text(text)


if __name__ == "__main__":
    import infinity_emb.cli.uvicorn_server as module

    module.UvicornServer = HeartbeatServer  # type: ignore[misc]  # what `serve` imports when it starts
    sys.exit(main())
