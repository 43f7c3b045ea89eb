"""Configure logging at an entry point, and describe a loaded model for the log."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import datetime, timezone

from infinity_emb.scheduling.request_context import current_request
from infinity_emb.types import ModelInfo

TRACE = 5
_MAX_SHOWN = 8  # labels in the log
_VERBOSE_LEVELS = ("debug", "trace")


class JsonFormatter(logging.Formatter):
    """Write one JSON object per line, with the id of the current request."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as JSON."""
        fields: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := current_request().request_id:
            fields["request_id"] = request_id
        if summary := getattr(record, "summary", None):
            fields["summary"] = summary
        if record.exc_info:
            fields["exception"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps(fields, ensure_ascii=False)


def configure_logging(level: str, log_format: str = "text") -> None:
    """Log to stderr, as text or as JSON.

    level: one of LOG_LEVELS, for this package. Other libraries log warnings and errors; uvicorn's access log
        is shown from debug on.
    """
    logging.addLevelName(TRACE, "TRACE")
    logging.basicConfig(
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        level=max(logging.WARNING, _level_number(level)),
        force=True,
    )
    if log_format == "json":
        for handler in logging.getLogger().handlers:
            handler.setFormatter(JsonFormatter())
    logging.getLogger("infinity_emb").setLevel(_level_number(level))
    shows_requests = level in _VERBOSE_LEVELS
    logging.getLogger("uvicorn").setLevel(_level_number(level) if shows_requests else logging.NOTSET)


def describe_model(name: str, info: ModelInfo, *, max_batch_tokens: int) -> list[str]:
    """Describe what was detected about a model, and why, in a few lines."""
    return [
        f"model {name!r}: {info.kind} ({', '.join(info.capabilities)}), from {_describe_origin(info)}",
        f"  engine {info.engine} ({info.engine_reason}), device {info.device}",
        f"  dtype {info.dtype} ({info.dtype_reason})",
        f"  batches {info.attention} ({info.attention_reason}), up to {max_batch_tokens} tokens",
        f"  {_describe_outputs(info)}; {_describe_limit(info)}; prompts: {_describe_prompts(info)}",
    ]


def _describe_origin(info: ModelInfo) -> str:
    return info.source if info.revision is None else f"{info.source}, revision {info.revision}"


def _describe_outputs(info: ModelInfo) -> str:
    if info.labels:
        shown = ", ".join(info.labels[:_MAX_SHOWN]) + (", …" if len(info.labels) > _MAX_SHOWN else "")
        return f"{len(info.labels)} labels ({shown}), activation {info.activation}"
    if not info.outputs:
        return f"scores, activation {info.activation}"
    return f"{' + '.join(info.outputs)}, dimension {info.embedding_dimension}, pooling {info.pooling}"


def _describe_limit(info: ModelInfo) -> str:
    if info.max_tokens is None:
        return "texts of any length"
    return f"texts truncated to {info.max_tokens} tokens ({info.truncation_side})"


def _describe_prompts(info: ModelInfo) -> str:
    names = [name for name, prompt in info.prompts.items() if prompt]
    default = f" (default: {info.default_prompt_name})" if info.default_prompt_name else ""
    return (", ".join(names) or "none") + default


def _level_number(level: str) -> int:
    return TRACE if level == "trace" else int(getattr(logging, level.upper()))
