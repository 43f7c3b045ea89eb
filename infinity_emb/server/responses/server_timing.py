"""Return the duration of each stage in `Server-Timing` if the request has `Prefer: server-timing`.

A client requests it where it needs it, so other requests pay nothing. `Prefer` is HTTP's header for options
that a server may ignore.
Source: RFC 7240, and https://www.w3.org/TR/server-timing/
"""

from __future__ import annotations

import time

from starlette.types import Scope

from infinity_emb.scheduling.stages import RequestStages

PREFERENCE = "server-timing"


def open_stages(scope: Scope) -> RequestStages | None:
    """Return the record of the request's trace, or a new one if the client asks for it; else None."""
    state = scope.setdefault("state", {})
    stages: RequestStages | None = state.get("stages")
    if stages is None and _is_asked(scope):
        stages = state["stages"] = RequestStages()
    return stages


def timing_headers(scope: Scope) -> dict[str, str]:
    """Return the header `Server-Timing` for a request that asks: milliseconds per stage, then in total."""
    stages: RequestStages | None = scope.get("state", {}).get("stages")
    if stages is None or not _is_asked(scope):
        return {}
    total_s = time.monotonic() - stages.started_s
    durations_s: list[tuple[str, float]] = [*stages.measure().items(), ("total", total_s)]
    entries = (f"{name};dur={1000 * seconds:.3f}" for name, seconds in durations_s)
    return {"Server-Timing": ", ".join(entries)}


def _is_asked(scope: Scope) -> bool:
    """Look for the preference in each header `Prefer`, whose entries may have parameters."""
    for name, value in scope["headers"]:
        if name == b"prefer":
            entries = (entry.partition(";")[0] for entry in value.decode("latin-1").split(","))
            if PREFERENCE in (entry.strip().lower() for entry in entries):
                return True
    return False
