"""Answers of 400 and above."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class ErrorInfo(BaseModel):
    """What was wrong, the limit, and the way out."""

    message: str
    type: str
    param: str | None
    code: int


class ErrorResponse(BaseModel):
    """Any answer of 400 and above."""

    error: ErrorInfo
    message: str


class HTTPErrorResponse(ErrorResponse):
    """The error, with its text as `detail` too."""

    detail: str


class ValidationDetail(BaseModel):
    """One place in the request that does not fit."""

    type: str
    loc: list[str | int]
    msg: str
    input: Any


class ValidationErrorResponse(ErrorResponse):
    """The error, with every place that does not fit."""

    detail: list[ValidationDetail]
