"""Read the lines of a batch, and write the lines of its results.

Source: https://platform.openai.com/docs/api-reference/batch/request-input
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from infinity_emb.bulk.line_stream import iterate_lines
from infinity_emb.server.requests.json_body import parse_json

ENDPOINT = "/v1/embeddings"
MAX_LINES = 50_000
MAX_CUSTOM_ID_CHARS = 512
MAX_PROBLEMS = 100
_MAX_SHOWN_CHARS = 80
# A line can neither leave the bulk lane nor set its own timeout.
_SET_BY_THE_SERVER = {"priority": "bulk", "timeout": None}


class LineRequest(NamedTuple):
    """One request of a batch.

    body: JSON for the route.
    num_inputs: upper bound on its number of inputs.
    """

    custom_id: str
    body: bytes
    num_inputs: int


class LineResponse(NamedTuple):
    """The response to a request of a batch."""

    status: int
    request_id: str
    body: bytes


class Problem(NamedTuple):
    """A reason why a batch fails as a whole; `line` counts from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class Checked(NamedTuple):
    """The number of requests of an input, and what is wrong with it."""

    num_lines: int
    problems: list[Problem]


def read_requests(path: Path, first: int, max_line_bytes: int) -> Iterator[LineRequest]:
    """Yield the requests of an input that has been checked, from number `first` on."""
    with path.open("rb") as file:
        texts = (line.text for line in iterate_lines(file, max_bytes=max_line_bytes) if line.text != b"")
        for number, text in enumerate(text for text in texts if text is None or text.strip()):
            if number >= first:
                fields = parse_json(text or b"{}")
                inputs = fields["body"].get("input")
                num_inputs = len(inputs) if isinstance(inputs, list) else 1
                yield LineRequest(fields["custom_id"], _write_body(fields["body"]), num_inputs)


def check_lines(path: Path, max_line_bytes: int) -> Checked:
    """Check every line of an input, as OpenAI does before a batch starts."""
    seen: set[str] = set()
    problems: list[Problem] = []
    with path.open("rb") as file:
        for line in iterate_lines(file, max_bytes=max_line_bytes):
            is_blank = line.text is not None and not line.text.strip()
            if line.number > 2 * MAX_LINES or (len(seen) >= MAX_LINES and not is_blank):
                message = f"a batch has at most {MAX_LINES} requests and as many blank lines"
                problems.append(Problem("too_many_requests", message))
                break
            if is_blank:
                continue
            problem = _check_line(line.text, line.number, max_line_bytes, seen)
            if problem:
                problems.append(problem)
                seen.add(f"\0{line.number}")  # counts as a request
            if len(problems) >= MAX_PROBLEMS:
                break
    if not seen and not problems:
        problems.append(Problem("empty_file", "the input file has no requests"))
    return Checked(len(seen), problems)


def _check_line(text: bytes | None, number: int, max_line_bytes: int, seen: set[str]) -> Problem | None:
    if text is None:
        return Problem("line_too_long", f"the line has more than {max_line_bytes} bytes", number)
    try:
        fields = parse_json(text)
    except RequestValidationError as exc:
        message = exc.errors()[0]["msg"].replace("the body", "the line")
        return Problem("invalid_json_line", message, number)
    except HTTPException as exc:
        return Problem("line_too_long", exc.detail.replace("the request body", "the line"), number)
    custom_id = fields.get("custom_id")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_CUSTOM_ID_CHARS:
        message = f"custom_id must be a text of 1 to {MAX_CUSTOM_ID_CHARS} characters"
        return Problem("missing_required_parameter", message, number, "custom_id")
    if custom_id in seen:
        message = f"custom_id {custom_id[:_MAX_SHOWN_CHARS]!r} is used in two lines"
        return Problem("duplicate_custom_id", message, number, "custom_id")
    if fields.get("method") != "POST":
        return Problem("invalid_method", "method must be 'POST'", number, "method")
    if fields.get("url") != ENDPOINT:
        return Problem(
            "mismatched_url", f"url must be {ENDPOINT!r}, as the endpoint of the batch", number, "url"
        )
    if not isinstance(fields.get("body"), dict):
        return Problem("missing_required_parameter", "body must be an object", number, "body")
    try:
        _write_body(fields["body"])
    except orjson.JSONEncodeError as exc:  # nested too deeply
        return Problem("invalid_json_line", f"body cannot be sent to the route: {exc}", number, "body")
    seen.add(custom_id)
    return None


def _write_body(body: Mapping[str, Any]) -> bytes:
    return orjson.dumps({**body, **_SET_BY_THE_SERVER})


def write_response(request: LineRequest, response: LineResponse) -> bytes:
    """Return the line of a response."""
    fields = {
        "status_code": response.status,
        "request_id": response.request_id,
        "body": orjson.Fragment(response.body),
    }
    return _write_line(request, fields, None)


def write_expired(request: LineRequest) -> bytes:
    """Return the line of a request that was not computed in time."""
    error = {
        "code": "batch_expired",
        "message": "This request could not be executed before the completion window expired.",
    }
    return _write_line(request, None, error)


def _write_line(
    request: LineRequest, response: Mapping[str, Any] | None, error: Mapping[str, Any] | None
) -> bytes:
    line = {
        "id": f"batch_req_{uuid.uuid4().hex}",
        "custom_id": request.custom_id,
        "response": response,
        "error": error,
    }
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
