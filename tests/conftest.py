"""Fixtures of several folders: server processes, and asyncio for tests marked `anyio`."""

from __future__ import annotations

import concurrent.futures
import contextlib
import faulthandler
import functools
import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from infinity_emb.scheduling.worker_pool import WorkerPool
from tests.support.server_process import Server, StartServer

# For a clean-up, after what pytest-timeout allows: it gives up its timer at the first failure.
CLEAN_UP_S = 60

_stderr = 2


def pytest_configure() -> None:
    """Let signals end the processes of tests even where the run itself ignores or blocks them.

    What runs in the background, or below `nohup`, ignores some, and so do all processes that it starts.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    global _stderr  # of the process: pytest puts a file in its place while a test runs
    _stderr = os.dup(2)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Exclude modules and tests from garbage collection: a full collection would visit a million objects."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    if config.getvalue("dist") != "loadfile":
        return None
    from tests.support.crashed_workers import FinishingScheduling

    return FinishingScheduling(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """End the process where a test with its clean-up hangs; pytest-xdist names it and runs the others."""
    own = item.get_closest_marker("timeout")
    longest_s = float(own.args[0] if own else item.config.getini("timeout"))
    timer = threading.Timer(longest_s + CLEAN_UP_S, _exit_with_stacks)
    timer.daemon = True
    timer.start()
    try:
        return (yield)
    finally:
        timer.cancel()


def _exit_with_stacks() -> None:
    faulthandler.dump_traceback(_stderr)
    # A process that the test has started would keep the output of this one open.
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    os._exit(1)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def exports_are_kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Export each network to ONNX once for all tests, also those of the other workers."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    from tests.support.kept_exports import keep_exports

    own: Path = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "exports"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", keep_exports(torch.onnx.export, folder))
        yield


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    servers: list[Server] = []

    def start(*arguments: str, **options: Any) -> Server:
        servers.append(Server(*arguments, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


@pytest.fixture
def serve(start_server: StartServer) -> StartServer:
    """Starts a server and waits until it listens."""
    return lambda *arguments, **environ: start_server(*arguments, **environ).wait_until_listening()


@pytest.fixture
def pool() -> Iterator[concurrent.futures.ThreadPoolExecutor]:
    with concurrent.futures.ThreadPoolExecutor() as executor:
        yield executor


@pytest.fixture
def dies_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every worker thread give up at its first crash."""
    give_up_at_once = functools.partialmethod(WorkerPool.__init__, max_consecutive_crashes=0)
    monkeypatch.setattr(WorkerPool, "__init__", give_up_at_once)
