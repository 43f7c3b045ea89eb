"""Ollama's error format."""

from __future__ import annotations

from pydantic import BaseModel, Field

from infinity_emb.errors import UnknownModel
from infinity_emb.server.error_format import Failure, FormattedError
from infinity_emb.server.responses.error_docs import NOT_READY, TASK_ERRORS, Errors, with_error_model


class OllamaError(BaseModel):
    """An error response."""

    error: str = Field(description="The error message.")


def format_error(failure: Failure) -> FormattedError:
    """Return the error with Ollama's status for an invalid request and its message for an unknown model."""
    message = failure.message
    if isinstance(failure.error, UnknownModel):
        message = f'model "{failure.error.name}" not found: {message}'
    return FormattedError(400 if failure.status == 422 else failure.status, {"error": message})


ERRORS = Errors(with_error_model(TASK_ERRORS, OllamaError), format_error)
READING_ERRORS = Errors(with_error_model({503: NOT_READY}, OllamaError), format_error)
