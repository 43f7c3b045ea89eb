"""Run a server with the fake engine, or an app that is a floor for it, and record where processor time goes.

    RECORD=path python -m benchmarks.sampled_server v2 …
    RECORD=path python -m benchmarks.sampled_server bare|fastapi

Every few milliseconds of processor time, the call stack of the main thread, which runs the event loop, is
recorded with the time since the sample before. At the signal SIGVTALRM the record is written as JSON, and a
new one begins.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.floors import APPS, serve_app
from infinity_emb.backends.fake import FakeBackend
from infinity_emb.cli import main

INTERVAL_S = 0.001  # less than the kernel's clock tick, which is what counts
WRITE = signal.SIGVTALRM


class Sampler:
    """Record the stacks of the main thread, and what the other threads take."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seconds: defaultdict[tuple[str, ...], float] = defaultdict(float)  # by stack
        self._engine_s = self._main_s = self._main_start_s = self._process_start_s = 0.0

    def start(self) -> None:
        """Begin to take samples, and to time the batches of the fake engine."""
        self._time_engine()
        signal.signal(signal.SIGPROF, self._take)
        signal.signal(WRITE, self._write)
        self._begin()

    def _take(self, _: int, frame: FrameType | None) -> None:
        now_s = time.thread_time()
        self._seconds[_list_functions(frame)] += now_s - self._main_s
        self._main_s = now_s

    def _write(self, *_: object) -> None:
        stop_samples()  # one that is taken now would change what is written
        main_s = time.thread_time() - self._main_start_s
        record = {
            "main": [[list(stack), seconds] for stack, seconds in list(self._seconds.items())],
            "engine_s": self._engine_s,
            "others_s": time.process_time() - self._process_start_s - main_s,
        }
        unfinished = self._path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(record))
        unfinished.replace(self._path)
        self._seconds.clear()
        self._begin()

    def _begin(self) -> None:
        self._engine_s = 0.0
        self._main_s = self._main_start_s = time.thread_time()
        self._process_start_s = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, INTERVAL_S, INTERVAL_S)

    def _time_engine(self) -> None:
        launch = FakeBackend.launch

        def launch_timed(*args: Any, **options: Any) -> Any:
            started_s = time.thread_time()
            try:
                return launch(*args, **options)
            finally:
                self._engine_s += time.thread_time() - started_s

        FakeBackend.launch = launch_timed  # type: ignore[method-assign]


def stop_samples() -> None:
    """Take no more samples."""
    signal.setitimer(signal.ITIMER_PROF, 0)


def _list_functions(frame: FrameType | None) -> tuple[str, ...]:
    """Return the functions of a stack with their files, the innermost first."""
    functions: list[str] = []
    while frame is not None:
        functions.append(f"{frame.f_code.co_filename} {frame.f_code.co_name}")
        frame = frame.f_back
    return tuple(functions)


def run(arguments: Sequence[str]) -> int:
    """Serve an app by its name, or run a command of the server."""
    Sampler(Path(os.environ["RECORD"])).start()
    try:
        return serve_app(APPS[arguments[0]]) if arguments[0] in APPS else main(arguments)
    finally:
        stop_samples()


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
