from __future__ import annotations

from fastapi.exceptions import RequestValidationError

from infinity_emb.server.request_errors import (
    MAX_DETAILS,
    MAX_TEXT,
    body_error,
    describe_errors,
    header_error,
    shorten,
    summarize_errors,
)


def details_of(*errors: Exception) -> list[dict[str, object]]:
    found = [
        detail for error in errors if isinstance(error, RequestValidationError) for detail in error.errors()
    ]
    return describe_errors(found)


def test_a_body_error_names_the_place_in_the_body() -> None:
    [detail] = details_of(body_error("too_long", "is too long", loc=["input", 3], given="a"))
    assert detail == {"type": "too_long", "loc": ["body", "input", 3], "msg": "is too long", "input": "a"}


def test_a_header_error_names_the_header() -> None:
    [detail] = details_of(header_error(b"x-priority", "is unknown", "soon"))
    assert detail["loc"] == ["header", "x-priority"]


def test_errors_are_summarized_in_one_sentence_with_the_first_field() -> None:
    errors = [body_error("missing", "is missing", loc=[name]) for name in ("a", "b", "c", "d")]
    assert summarize_errors(details_of(*errors)) == (
        "a: is missing; b: is missing; c: is missing; and 1 more",
        "a",
    )


def test_an_error_about_the_whole_body_has_no_field() -> None:
    error = body_error("json_invalid", "the body is not valid JSON")
    assert summarize_errors(details_of(error)) == ("the body is not valid JSON", None)


def test_the_number_of_details_is_limited() -> None:
    errors = [body_error("missing", "is missing", loc=[str(index)]) for index in range(MAX_DETAILS + 5)]
    assert len(details_of(*errors)) == MAX_DETAILS


def test_long_values_are_shortened_at_every_depth() -> None:
    assert shorten("a" * MAX_TEXT) == "a" * MAX_TEXT
    assert shorten("a" * 201) == "a" * MAX_TEXT + "... (201 characters)"
    assert shorten([1, 2, 3, 4]) == [1, 2, 3, "(4 items)"]
    assert shorten((1, 2)) == [1, 2]
    assert shorten({"a": {"b": {"c": 1}}}) == {"a": {"b": "(1 items)"}}
    assert shorten({str(key): key for key in range(10)}) == {str(key): key for key in range(6)}
    assert shorten(None) is None
