from __future__ import annotations

import pytest

from infinity_emb.server.requests.headers import find_header, join_headers, read_content_length

HEADERS = [
    (b"host", b"here"),
    (b"accept", b"text/html"),
    (b"accept", b"*/*;q=0.1"),
    (b"x-name", b"\xe9"),
]


@pytest.mark.parametrize(
    ("name", "value"),
    [(b"host", "here"), (b"accept", "text/html"), (b"x-name", "\xe9"), (b"none", None)],
)
def test_the_first_value_of_a_header_is_found(name: bytes, value: str | None) -> None:
    assert find_header({"headers": HEADERS}, name) == value


def test_all_values_of_a_header_are_joined_with_commas() -> None:
    assert join_headers({"headers": HEADERS}, b"accept") == "text/html, */*;q=0.1"
    assert join_headers({"headers": HEADERS}, b"none") == ""


@pytest.mark.parametrize("value", [b"", b"-1", b"many", b"\xb2", b"9" * 30])
def test_an_invalid_content_length_counts_as_none(value: bytes) -> None:
    assert read_content_length({"headers": [(b"content-length", value)]}) == 0


def test_the_content_length_is_read() -> None:
    assert read_content_length({"headers": [(b"content-length", b"12")]}) == 12
    assert read_content_length({"headers": HEADERS}) == 0
