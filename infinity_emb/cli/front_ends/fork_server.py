"""Start front ends by forking a process that has loaded the models and has no thread of ours.

It is forked before anything serves and holds what front ends need: the tokenizers, and the weights as memory
that is shared until it is written to. The engine process itself could not fork safely later: its threads
may hold locks at that moment, which nobody would release in the child.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import partial

from infinity_emb.errors import EngineNotReady

# Runs a front end, given its number and its end of the socket to the engine process.
RunFrontEnd = Callable[[int, socket.socket], int]


class ForkServer:
    """The process that front ends are forked from.

    run: what a front end does; returns its exit code. prepare: called first in the process.
    """

    def __init__(self, run: RunFrontEnd, *, prepare: Callable[[], None] = lambda: None) -> None:
        self._control, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if not _fork():
            prepare()
            _run_as_child(lambda: _serve_forks(other, run, self._control))
        other.close()

    def start(self, number: int) -> socket.socket:
        """Start a front end and return this process's end of the socket to it.

        Raises EngineNotReady when the process has ended.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            socket.send_fds(self._control, [bytes([number])], [theirs.fileno()])
        except OSError as exc:
            ours.close()
            raise EngineNotReady("the process that starts front ends has ended") from exc
        finally:
            theirs.close()
        return ours

    def close(self) -> None:
        """Let the process end."""
        self._control.close()


def _fork() -> int:
    with warnings.catch_warnings():
        # Libraries have threads that wait for work; nothing here uses them after the fork.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _run_as_child(run: Callable[[], int]) -> None:
    """Run, then end this process with the exit code, without the parent's clean-up handlers."""
    code = 1
    try:
        code = run()
    finally:
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)


def _serve_forks(control: socket.socket, run: RunFrontEnd, parents_end: socket.socket) -> int:
    """Start a front end for each socket that arrives, until the engine process has ended."""
    parents_end.close()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # the engine process handles them
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel forgets front ends that have ended
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # their threads are not in a fork
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not message:
            return 0
        end = socket.socket(fileno=descriptors[0])
        if not _fork():
            control.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _run_as_child(partial(run, message[0], end))
        end.close()
