"""Servers that wrk loads, and the processor time that they take."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.sampled_server import WRITE
from benchmarks.wrk import run_wrk


class LoadResult:
    """What wrk counted, and the processor time of each request in the main process and in all others."""

    def __init__(self, printed: str, main_s: float, others_s: float) -> None:
        self.num_requests = int(re.findall(r"(\d+) requests in", printed)[0])
        self.requests_per_s = float(re.findall(r"Requests/sec:\s+([\d.]+)", printed)[0])
        self.main_us = 1e6 * main_s / self.num_requests
        self.others_us = 1e6 * others_s / self.num_requests


class LoadedServer:
    """A running server.

    arguments: of Python.
    """

    def __init__(self, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self._log = tempfile.NamedTemporaryFile()  # noqa: SIM115 (closed in `close`)
        self.process = subprocess.Popen(
            [sys.executable, *arguments], stderr=self._log, env=os.environ | (environment or {})
        )
        self._url = self._wait_for_url()
        main = psutil.Process(self.process.pid)
        self._processes = [main, *main.children(recursive=True)]

    def load(self, script: Path, *, num_clients: int, seconds: float) -> LoadResult:
        """Send requests for some seconds."""
        before = self._read_cpu_s()
        printed = run_wrk(self._url, script, num_clients=num_clients, seconds=seconds)
        main_s, others_s = (late - early for early, late in zip(before, self._read_cpu_s(), strict=True))
        return LoadResult(printed, main_s, others_s)

    def close(self) -> None:
        """Stop the server."""
        self.process.terminate()
        self.process.wait(60)
        self._log.close()

    def _wait_for_url(self) -> str:
        for _ in range(600):
            found = re.search(r"listening on (http://[^,\s]+)", Path(self._log.name).read_text())
            if found:
                return found.group(1)
            time.sleep(0.1)
        self.close()
        raise RuntimeError("the server did not start")

    def _read_cpu_s(self) -> Sequence[float]:
        """Return the processor time of the main process, and of all others together."""
        times = [each.cpu_times() for each in self._processes]
        seconds = [each.user + each.system for each in times]
        return seconds[0], sum(seconds[1:])


class SampledServer(LoadedServer):
    """A server that records where its processor time goes; see `sampled_server`."""

    def __init__(self, *arguments: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._record = Path(self._folder.name, "record.json")
        environment = {"RECORD": str(self._record)}
        super().__init__("-m", "benchmarks.sampled_server", *arguments, environment=environment)

    def take_record(self) -> Mapping[str, Any]:
        """Return what was recorded since the last call."""
        self._record.unlink(missing_ok=True)
        self.process.send_signal(WRITE)
        for _ in range(300):
            if self._record.exists():
                return dict(json.loads(self._record.read_text()))
            time.sleep(0.1)
        raise RuntimeError("the server wrote no record")

    def close(self) -> None:
        """Stop the server."""
        super().close()
        self._folder.cleanup()
