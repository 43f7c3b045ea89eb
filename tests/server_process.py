"""A server as a process of its own, for tests: over the loopback alone, stopped by its pid."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx

DEADLINE_S = 60
CLEAN_ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("INFINITY_")}
COMMAND = [sys.executable, "-c", "import sys; from infinity_emb.cli import main; sys.exit(main())"]
FAKE = ["--engine", "debugengine", "--host", "127.0.0.1", "--port", "0"]


@dataclass
class Server:
    """A running process and what it wrote until it listened."""

    process: subprocess.Popen[str]
    url: str
    lines: list[str]

    def wait_for_line(self, words: str) -> str:
        """The next line on stderr that holds `words`."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if words in line:
                return line
        raise AssertionError(f"the server ended without saying {words!r}:\n{''.join(self.lines)}")

    def stop(self, *signals: signal.Signals) -> tuple[int, str]:
        """Send signals one after another; the exit code and what was written last."""
        for number in signals:
            self.process.send_signal(number)
        _, rest = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, rest

    def wait_for_pending(self, num_requests: int) -> None:
        """Return once the first model has accepted so many requests that are not answered yet."""
        deadline_s = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline_s:
            entry = httpx.get(f"{self.url}/models").json()["data"][0]
            if entry["stats"]["results_pending"] == num_requests:
                return
        raise AssertionError(f"{num_requests} requests were never pending")

    def embed(self, text: str = "abc") -> httpx.Response:
        return httpx.post(f"{self.url}/embeddings", json={"input": text}, timeout=DEADLINE_S)


StartServer = Callable[..., Server]


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """A command line that ends by itself."""
    return subprocess.run(
        [*COMMAND, *arguments],
        env=CLEAN_ENVIRON | environ,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
