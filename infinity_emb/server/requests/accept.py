"""Read the Accept header. Source: RFC 9110 sections 12.4.2 and 12.5.1."""

from __future__ import annotations

import re
from functools import lru_cache

JSON = "application/json"
BINARY = "application/octet-stream"
_QUALITY = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")


@lru_cache(maxsize=64)  # a client sends the same header with each request
def prefers_binary(accept: str) -> bool:
    """Return whether a client names binary responses and prefers them to JSON.

    The order within the header is ignored, so a client that lists all types of the OpenAPI document gets
    JSON; a named type takes precedence over `*/*` of the same weight.
    """
    weights = _read_weights(accept)
    binary, json = weights.get(BINARY, 0.0), _find_weight(weights, JSON)
    return binary > json or (binary == json > 0 and JSON not in weights)


def _find_weight(weights: dict[str, float], media_type: str) -> float:
    """Return the weight of the most specific range that includes the type."""
    ranges = (media_type, f"{media_type.partition('/')[0]}/*", "*/*")
    return next((weights[each] for each in ranges if each in weights), 0.0)


def _read_weights(accept: str) -> dict[str, float]:
    """Return media range → weight, in lower case; ranges with an invalid weight are left out."""
    weights: dict[str, float] = {}
    for entry in accept.lower().split(","):
        media_range, *parameters = (part.strip() for part in entry.split(";"))
        quality = next((part[2:].strip() for part in parameters if part.startswith("q=")), "1")
        if _QUALITY.fullmatch(quality):
            weights[media_range] = max(float(quality), weights.get(media_range, 0.0))
    return weights
