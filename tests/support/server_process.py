"""Run a server in a separate process, on the loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx

DEADLINE_S = 60
CLEAN_ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("INFINITY_")}
COMMAND = [sys.executable, "-c", "import sys; from infinity_emb.cli import main; sys.exit(main())"]
FAKE = ["--engine", "debugengine", "--host", "127.0.0.1", "--port", "0"]


class Server:
    """A running process, and its log until it listened.

    The log is a file: a pipe that nobody reads fills up and holds the server.
    """

    def __init__(self, *arguments: str, command: list[str] = COMMAND, **environ: str) -> None:
        self.lines: list[str] = []
        self.url = ""
        with tempfile.NamedTemporaryFile() as file:
            self._log = open(file.name)  # noqa: SIM115 (closed in `kill`)
            self.process = subprocess.Popen([*command, *arguments], env=CLEAN_ENVIRON | environ, stderr=file)

    def wait_until_listening(self) -> Server:
        """Wait until the server listens, and note its address."""
        line = self.wait_for_line("listening on ")
        self.url = line.partition("listening on ")[2].partition(",")[0]
        return self

    def wait_for_line(self, words: str) -> str:
        """Return the next line of the log that contains `words`."""
        line, has_exited = "", False
        while not has_exited:
            has_exited = self.process.poll() is not None
            while part := self._log.readline():
                line += part
                if line.endswith("\n"):
                    self.lines.append(line)
                    if words in line:
                        return line
                    line = ""
            time.sleep(0.01)
        raise AssertionError(f"the server exited without logging {words!r}:\n{''.join(self.lines)}")

    def stop(self, *signals: signal.Signals) -> tuple[int, str]:
        """Send signals one by one; return the exit code and the rest of the log."""
        for number in signals:
            self.process.send_signal(number)
        return self.process.wait(DEADLINE_S), self._log.read()

    def kill(self) -> None:
        """End the process, if it has not ended."""
        self.process.kill()
        self.process.wait()
        self._log.close()

    def wait_for_pending(self, num_requests: int) -> None:
        """Wait until the first model has this many pending requests."""
        deadline_s = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline_s:
            entry = httpx.get(f"{self.url}/models", verify=False).json()["data"][0]
            if entry["stats"]["results_pending"] == num_requests:
                return
        raise AssertionError(f"{num_requests} requests were never pending")

    def embed(self, text: str = "abc") -> httpx.Response:
        return httpx.post(f"{self.url}/embeddings", json={"input": text}, timeout=DEADLINE_S, verify=False)


@contextmanager
def serving(*options: str, **environ: str) -> Iterator[str]:
    """Yield the address of a server that runs meanwhile."""
    server = Server("v2", "--host", "127.0.0.1", "--port", "0", *options, **environ)
    try:
        yield server.wait_until_listening().url
    finally:
        server.kill()


StartServer = Callable[..., Server]


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command line until it exits."""
    return subprocess.run(
        [*COMMAND, *arguments],
        env=CLEAN_ENVIRON | environ,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
