"""Load a model in the child process of `load_trial.py`, under limits that the server cannot have."""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import signal
import sys
import warnings
from pathlib import Path

from infinity_emb.backends.load_trial import STARTS_READING, no_memory
from infinity_emb.backends.registry import load_model
from infinity_emb.concurrency import prepare_isolated_child
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.config.model_options import LoadOptions
from infinity_emb.errors import StartupError
from infinity_emb.storage.load_progress import LoadProgress, listen

_PR_SET_PDEATHSIG = 1  # of prctl(2)


def main() -> None:
    """Load the model that standard input describes, and write `{}` or the error to standard output."""
    answers = prepare_isolated_child()
    job = json.load(sys.stdin)
    _limit_process(job["max_memory_bytes"])
    # The server writes the same lines when it loads the model.
    logging.disable()
    warnings.simplefilter("ignore")
    error = _load(EngineArgs(**job["options"]).load, answers)
    answer = {} if error is None else {"error": type(error).__name__, "reason": error.reason}
    os.write(answers, json.dumps(answer).encode() + b"\n")


def _limit_process(max_memory_bytes: int | None) -> None:
    if sys.platform == "win32":
        return
    import resource

    if max_memory_bytes is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (max_memory_bytes, max_memory_bytes))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # end with the server
        with contextlib.suppress(OSError):  # if memory runs out, the system kills this process first
            Path("/proc/self/oom_score_adj").write_text("1000")


def _load(args: LoadOptions, answers: int) -> StartupError | None:
    """Return why the model cannot be loaded, or None."""
    is_reading = False

    def report(progress: LoadProgress) -> None:
        nonlocal is_reading
        if progress.stage == "reading weights" and not is_reading:
            is_reading = True
            os.write(answers, STARTS_READING)

    try:
        with listen(report):
            load_model(args)
    except StartupError as exc:
        return exc
    except MemoryError:
        return no_memory(args.model_name_or_path)
    return None
