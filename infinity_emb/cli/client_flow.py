"""Find out whose turn it is to start a request, before its key has been checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infinity_emb.scheduling.fair_queue import Flow
from infinity_emb.server.endpoints import PROBE_PATHS

_KEY_HEADERS = (b"authorization", b"api-key")


def read_flow(scope: Mapping[str, Any]) -> Flow:
    """Return the flow of a request: its address with its key, or with its path if it is a probe.

    The key has not been checked yet; requests that all have different keys start in order of arrival.
    """
    path: str = scope["path"]
    address = scope["client"][0] if scope["client"] else ""
    if path in PROBE_PATHS:
        return Flow(f"{address} {path}")
    key = next((value for name, value in scope["headers"] if name in _KEY_HEADERS), b"")
    return Flow(f"{address} {key.decode('latin-1')}")
