"""Split the processor time of a request by stages, from the stacks that `sampled_server` records."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

OTHER = "socket and HTTP"
WORKER = "worker thread without the fake engine"
# Stage → a pattern of its functions, as `file function`. The innermost function of a stack that has a match
# decides; other functions, such as the standard library's, count for their callers.
STAGES = {
    "fake engine": r"backends/fake\.py",
    "post-processing": r"/postprocessing\.py|engine/embedding\.py (_shape|_convert|_scale|_quantize)",
    "validation": r"/pydantic|server/schemas/|requests/(members|fields|embedding_options)\.py"
    r"|requests/json_body\.py (validate|fit_schema)|responses/encoding\.py read_encoding",
    "body and JSON": r"requests/(body|json_body|content_encoding|json_text)\.py",
    "ids, metrics, headers": r"middleware/(request_id|http_metrics|request_counters)\.py|/prometheus_client/"
    r"|/logging/|responses/server_timing\.py|requests/headers\.py|scheduling/histogram\.py",
    "response": r"server/responses/|routes/\w+\.py _respond|/starlette/responses\.py",
    "account, memory, admission": r"requests/(memory|context|call|disconnect)\.py|/fair_budget\.py"
    r"|scheduling/(admission|throughput|request_context)\.py|engine/(gate|slot|array)\.py"
    r"|server/(early_refusals|served_models|error_format)\.py",
    "queue and hand-over": r"infinity_emb/scheduling/|infinity_emb/concurrency\.py|/threading\.py",
    "engine and cache": r"infinity_emb/(engine|cache|preprocessing)/|infinity_emb/items\.py",
    "routing and middleware": r"infinity_emb/server/|/fastapi/|/starlette/",
    OTHER: r"/uvicorn/|/asyncio/|infinity_emb/cli/|/benchmarks/",
}


def split_by_stage(record: Mapping[str, Any], num_requests: int) -> dict[str, float]:
    """Return microseconds per request of each stage."""
    seconds: Counter[str] = Counter()
    for stack, stack_s in record["main"]:
        seconds[find_stage(stack)] += stack_s
    seconds["fake engine"] += record["engine_s"]
    seconds[WORKER] = record["others_s"] - record["engine_s"]
    return {stage: 1e6 * seconds[stage] / num_requests for stage in (*STAGES, WORKER)}


def find_stage(stack: Sequence[str]) -> str:
    """Return the stage of a stack, of which the innermost function comes first."""
    matches = (_match(function) for function in stack)
    return next((stage for stage in matches if stage is not None), OTHER)


def _match(function: str) -> str | None:
    return next((stage for stage, pattern in _PATTERNS if pattern.search(function)), None)


def _compile(stages: Iterable[tuple[str, str]]) -> list[tuple[str, re.Pattern[str]]]:
    return [(stage, re.compile(pattern)) for stage, pattern in stages]


_PATTERNS = _compile(STAGES.items())
