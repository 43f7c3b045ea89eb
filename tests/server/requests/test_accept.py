from __future__ import annotations

import pytest

from infinity_emb.server.requests.accept import prefers_binary

BINARY = "application/octet-stream"
JSON = "application/json"


@pytest.mark.parametrize(
    "accept",
    [
        BINARY,
        "Application/Octet-Stream ; Q=0.1",
        f"{BINARY}, {JSON};q=0.5",
        f"{JSON};q=0.5, {BINARY};q=0.6",
        f"{JSON};q=0, {BINARY};q=0.001",
        f"{BINARY}, */*;q=0.8",
        f"{BINARY}, */*",
        f"*/*, {BINARY}",
        f"application/*, {BINARY}",
        f"{BINARY};v=1;q=0.5, text/html",
    ],
)
def test_binary_is_chosen_where_it_is_preferred(accept: str) -> None:
    assert prefers_binary(accept)


@pytest.mark.parametrize(
    "accept",
    [
        "",
        "*/*",
        "application/*",
        JSON,
        "application/octet-streams",
        f"{JSON}, {BINARY}",
        f"{BINARY}, {JSON}",
        f"{BINARY};q=0.5, {JSON};q=0.5",
        f"{BINARY};q=0.5, {JSON}",
        f"{JSON}, {BINARY};q=0.999",
        f"{BINARY};q=0",
        f"{BINARY};q=0.0, */*",
        f"{BINARY};q=0.5, */*",
        f"{BINARY};q=0.5, application/*;q=0.7",
        f"{BINARY};q=2",
        f"{BINARY};q=",
        f"{BINARY};q=one",
        f"{BINARY};q=-1",
        f"{BINARY};q=nan",
        ",;,q=1",
    ],
)
def test_json_is_chosen_otherwise(accept: str) -> None:
    """A mention of binary was enough, also with a weight of 0."""
    assert not prefers_binary(accept)
