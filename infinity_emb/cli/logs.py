"""What a person at the terminal reads: how log lines look, and what is said about a model that was loaded.

Knows nothing of options or HTTP. Called by the entry points alone: importing this package sets up no logging.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import datetime, timezone

from infinity_emb.caller import present_caller
from infinity_emb.primitives import ModelInfo

TRACE = 5
_MAX_SHOWN = 8  # labels in the log
_VERBOSE_LEVELS = ("debug", "trace")


class JsonFormatter(logging.Formatter):
    """One object a line, with the id of the request that the line is about, where it is about one."""

    def format(self, record: logging.LogRecord) -> str:
        """As JSON."""
        members = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := present_caller().request_id:
            members["request_id"] = request_id
        if record.exc_info:
            members["exception"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps(members, ensure_ascii=False)


def configure_logging(level: str, log_format: str = "text") -> None:
    """Write lines to stderr, plain ones or JSON.

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
    if log_format == "json":
        for handler in logging.getLogger().handlers:
            handler.setFormatter(JsonFormatter())
    logging.getLogger("infinity_emb").setLevel(_number(level))
    shows_requests = level in _VERBOSE_LEVELS
    logging.getLogger("uvicorn").setLevel(_number(level) if shows_requests else logging.NOTSET)


def describe_model(name: str, info: ModelInfo, *, max_batch_tokens: int) -> list[str]:
    """Everything that was detected about a model, and why, in a few lines."""
    return [
        f"model {name!r}: {info.kind}, can {', '.join(info.capabilities)}; from {_origin(info)}",
        f"  engine {info.engine} ({info.engine_reason})",
        f"  device {info.device}, dtype {info.dtype} ({info.dtype_reason}),"
        f" attention {info.attention} ({info.attention_reason})",
        f"  {_answers(info)}; {_limit(info)}; {max_batch_tokens} tokens a batch",
        f"  prompts: {_prompts(info)}",
    ]


def _origin(info: ModelInfo) -> str:
    return info.source if info.revision is None else f"{info.source}, revision {info.revision}"


def _answers(info: ModelInfo) -> str:
    if info.labels:
        shown = ", ".join(info.labels[:_MAX_SHOWN]) + (", …" if len(info.labels) > _MAX_SHOWN else "")
        return f"{len(info.labels)} labels ({shown}), activation {info.activation}"
    if not info.outputs:
        return f"scores, activation {info.activation}"
    return f"{' + '.join(info.outputs)}, dimension {info.embedding_dimension}, pooling {info.pooling}"


def _limit(info: ModelInfo) -> str:
    if info.max_tokens is None:
        return "texts of any length"
    return f"texts are cut to {info.max_tokens} tokens on the {info.truncation_side}"


def _prompts(info: ModelInfo) -> str:
    named = [name for name, prompt in info.prompts.items() if prompt]
    default = info.default_prompt_name
    return f"{', '.join(named) or 'none'}; by default {default or 'none'}"


def _number(level: str) -> int:
    return TRACE if level == "trace" else int(getattr(logging, level.upper()))
