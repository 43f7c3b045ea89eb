"""Cohere's error format."""

from __future__ import annotations

from pydantic import BaseModel, Field

from infinity_emb.server.error_format import Failure, FormattedError
from infinity_emb.server.responses.error_docs import TASK_ERRORS, Errors, with_error_model


class CohereError(BaseModel):
    """An error response."""

    message: str = Field(description="The error message.")


def format_error(failure: Failure) -> FormattedError:
    """Return the field that Cohere's clients show, with its status 400 for an invalid request."""
    return FormattedError(400 if failure.status == 422 else failure.status, {"message": failure.message})


ERRORS = Errors(with_error_model(TASK_ERRORS, CohereError), format_error)
