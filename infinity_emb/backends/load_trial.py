"""Load a model in a child process first, which can be killed and whose memory is bounded.

Native code can be stopped only by killing its process, and a library that aborts ends its process. The child
runs `load_child.py`; the processes exchange lines of JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
from typing import Any

from infinity_emb.concurrency import KillTimer, start_isolated_python
from infinity_emb.config.model_options import LoadOptions
from infinity_emb.errors import DeviceFailed, ModelTooLarge, StartupError
from infinity_emb.hardware import free_memory_bytes
from infinity_emb.hub.file_selection import count_weight_bytes
from infinity_emb.hub.resolve import ModelFiles
from infinity_emb.types import InferenceEngine

MAX_ANSWER_BYTES = 2**16
_PROGRAM = "from infinity_emb.backends.load_child import main; main()"
_ERRORS = {error.__name__: error for error in (StartupError, ModelTooLarge, DeviceFailed)}
STARTS_READING = b"\n"  # the deadline counts from here, so that it does not include downloads
# Models that were loaded in a trial; they need none when they are loaded again after an unload.
_passed: set[tuple[LoadOptions, str | None]] = set()


def load_in_trial(args: LoadOptions, files: ModelFiles | None) -> None:
    """Raise what loading the model raises in a child process, unless these files have been loaded in one.

    Raises StartupError for a load that takes longer than `args.load_timeout_s` or ends the process, and
    ModelTooLarge for one that takes more memory than was available when it started.
    """
    # The number of tokens is measured by the first load, and given to the next one.
    key = (dataclasses.replace(args, max_batch_tokens=0), None if files is None else files.version)
    if key in _passed:
        return
    with start_isolated_python(_PROGRAM) as child:
        try:
            _await_success(child, args, _choose_memory_limit(files))
        finally:
            _kill_all(child)
    _passed.add(key)


def _choose_memory_limit(files: ModelFiles | None) -> int | None:
    """Return the bytes that the child may map: what is free, and the files of weights, which count too."""
    free = free_memory_bytes()
    return free if free is None or files is None else free + count_weight_bytes(files.path)


def _await_success(child: subprocess.Popen[bytes], args: LoadOptions, max_memory_bytes: int | None) -> None:
    stdin: Any = child.stdin
    stdout: Any = child.stdout
    # The server warms up; `auto` would measure again there.
    warms_up = args.model_warmup and args.engine is InferenceEngine.auto
    tried = dataclasses.replace(args, needs_trial=False, model_warmup=warms_up)
    job = {"options": dataclasses.asdict(tried), "max_memory_bytes": max_memory_bytes}
    timer = KillTimer(args.load_timeout_s, lambda: _kill_all(child))
    with contextlib.suppress(BrokenPipeError), stdin:
        stdin.write(json.dumps(job).encode())
    try:
        answer = stdout.readline(MAX_ANSWER_BYTES)
        if answer == STARTS_READING:
            if args.load_timeout_s:
                timer.start()
            answer = stdout.readline(MAX_ANSWER_BYTES)
    finally:
        timer.cancel()
    if not answer:
        raise _explain_end(child, args, is_late=timer.has_fired)
    result = json.loads(answer)
    if "error" in result:
        raise _ERRORS.get(result["error"], StartupError)(str(result["reason"]))


def _explain_end(child: subprocess.Popen[bytes], args: LoadOptions, *, is_late: bool) -> StartupError:
    name = args.model_name_or_path
    if is_late:
        return StartupError(
            f"model {name!r} was not loaded in time: took longer than {args.load_timeout_s} s;"
            " raise --load-timeout-s if its files are right"
        )
    _kill_all(child)  # does not change the child's status: it has ended, as its stream has
    status = child.wait()
    if -status == getattr(signal, "SIGKILL", None):  # by the system
        return no_memory(name)
    cause = signal.Signals(-status).name if status < 0 else f"exit code {status}"
    return StartupError(
        f"model {name!r} could not be loaded: it ended the process that tried to, by {cause}; its files are"
        " wrong, or take more memory than there is"
    )


def no_memory(name: str) -> ModelTooLarge:
    """Return the error for a model that takes more memory than there is."""
    return ModelTooLarge(f"there is no memory for model {name!r}; unload another one first")


def _kill_all(child: subprocess.Popen[bytes]) -> None:
    """Kill the child and the processes that it has started, unless it was waited for."""
    if child.returncode is not None:
        return
    if sys.platform == "win32":
        child.kill()
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
