"""The commands `embed`, `rerank` and `classify`: compute files, and report the outcome."""

from __future__ import annotations

import importlib
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from infinity_emb.config.bulk_options import BulkOptions
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.errors import ServingError, StartupError, one_line, require_extra

if TYPE_CHECKING:
    from infinity_emb.bulk.job import Summary
    from infinity_emb.bulk.run import JobPlan
    from infinity_emb.bulk.tasks import Task

HAS_BAD_ROWS = 3
_VERBS: Mapping[str, str] = {"embed": "embedded", "rerank": "scored", "classify": "classified"}


def compute_files(
    command: str, inputs: Sequence[str], options: BulkOptions, engine_args: Sequence[EngineArgs]
) -> int:
    """Run a job; return 0, or 3 if some rows have no result, 1 if it stopped, and 130 after Ctrl-C.

    Raises StartupError if it cannot start.
    """
    if len(engine_args) != 1:
        raise StartupError(f"{command} computes with one model, and {len(engine_args)} are given")
    with require_extra("computing files", "bulk"):  # checked before a model is loaded
        for name in ("pyarrow", "orjson", "httpx2"):
            importlib.import_module(name)
    from infinity_emb.bulk.run import plan_job, run_job

    plan = plan_job(cast("Task", command), inputs, options)
    start_s = time.monotonic()
    try:
        summary = run_job(plan, options, engine_args[0])
    except KeyboardInterrupt:
        _write("stopped; the same command continues")
        return 128 + signal.SIGINT
    except StartupError:
        raise
    except ServingError as exc:
        _write(f"error: {one_line(exc)}; the same command continues")
        return 1
    _write(_describe(command, plan, summary, time.monotonic() - start_s))
    return HAS_BAD_ROWS if summary.num_bad_rows else 0


def _describe(command: str, plan: JobPlan, summary: Summary, duration_s: float) -> str:
    rates = f"{summary.num_rows / duration_s:.0f} rows/s, {summary.num_tokens / duration_s:.0f} tokens/s"
    done = f"{_VERBS[command]} {summary.num_rows} rows in {duration_s:.1f} s ({rates}): {plan.layout.output}"
    if not summary.num_bad_rows:
        return done
    return f"{done}; {summary.num_bad_rows} without a result, see {plan.layout.bad_rows}"


def _write(line: str) -> None:
    sys.stderr.write(f"{line}\n")
