"""Error responses."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class ErrorInfo(BaseModel):
    """An error."""

    message: str = Field(description="What is wrong, and how to correct it.")
    type: str = Field(description="Error type of OpenAI's API.")
    param: str | None = Field(description="Field that caused the error.")
    code: int = Field(description="HTTP status.")


class ErrorResponse(BaseModel):
    """An error response."""

    error: ErrorInfo
    message: str = Field(description="The message of `error` again.")


class HTTPErrorResponse(ErrorResponse):
    """An error response with the name of the status."""

    detail: str = Field(description="Name of the status, for clients of FastAPI.")


class ValidationDetail(BaseModel):
    """One invalid part of the request."""

    type: str = Field(description="Kind of the error.")
    loc: list[str | int] = Field(description="Path to the invalid part.")
    msg: str = Field(description="What is wrong with it.")
    input: Any = Field(description="The invalid value, shortened.")


class ValidationErrorResponse(BaseModel):
    """An error response that lists all invalid parts of the request."""

    error: ErrorInfo
    detail: list[ValidationDetail] = Field(description="The invalid parts.")
