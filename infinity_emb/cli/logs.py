"""What a person at the terminal reads: how log lines look, and what is said about a model that was loaded.

Knows nothing of options or HTTP. Called by the entry points alone: importing this package sets up no logging.
"""

from __future__ import annotations

import logging
import sys

from infinity_emb.primitives import ModelInfo

TRACE = 5
_VERBOSE_LEVELS = ("debug", "trace")


def configure_logging(level: str) -> None:
    """Write plain lines to stderr.

    level: one of LOG_LEVELS, for this package. Other libraries are heard from warnings on; uvicorn's own
    lines, one per request among them, are shown at debug.
    """
    logging.addLevelName(TRACE, "TRACE")
    logging.basicConfig(
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        level=max(logging.WARNING, _number(level)),
        force=True,
    )
    logging.getLogger("infinity_emb").setLevel(_number(level))
    shows_requests = level in _VERBOSE_LEVELS
    logging.getLogger("uvicorn").setLevel(_number(level) if shows_requests else logging.NOTSET)


def describe_model(name: str, info: ModelInfo, *, max_batch_tokens: int) -> str:
    """One line with everything that was detected, and why."""
    limit = "texts of any length" if info.max_tokens is None else f"up to {info.max_tokens} tokens a text"
    return (
        f"model {name!r} on {info.device}: dtype {info.dtype} ({info.dtype_reason}),"
        f" attention {info.attention} ({info.attention_reason}), dimension {info.embedding_dimension},"
        f" {limit}, {max_batch_tokens} tokens a batch"
    )


def _number(level: str) -> int:
    return TRACE if level == "trace" else int(getattr(logging, level.upper()))
