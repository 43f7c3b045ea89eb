"""The error format of Text Embeddings Inference."""

from __future__ import annotations

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from infinity_emb.errors import BadInput, EngineNotReady, ModelNotDeployedError, Overloaded, ServingError
from infinity_emb.server.error_format import Failure, FormattedError
from infinity_emb.server.responses.error_docs import TASK_ERRORS, Errors, permanent_error, with_error_model

# Exception → status, None to keep it, and `error_type`.
_TYPES: dict[type[Exception], tuple[int | None, str]] = {
    ModelNotDeployedError: (424, "Backend"),
    BadInput: (422, "Validation"),
    Overloaded: (429, "Overloaded"),
    EngineNotReady: (503, "Unhealthy"),
    ServingError: (424, "Backend"),
    RequestValidationError: (422, "Validation"),
    HTTPException: (None, "Validation"),
}


class TeiError(BaseModel):
    """An error response."""

    error: str = Field(description="The error message.")
    error_type: str = Field(description="`Validation`, `Empty`, `Backend`, `Overloaded` or `Unhealthy`.")


def format_error(failure: Failure) -> FormattedError:
    """Return the error with TEI's statuses: 424 if the model cannot do the task or has failed."""
    status, error_type = next(
        (_TYPES[cls] for cls in type(failure.error).__mro__ if cls in _TYPES), (None, "Backend")
    )
    if _is_empty_input(failure.error):
        status, error_type = 400, "Empty"
    return FormattedError(status or failure.status, {"error": failure.message, "error_type": error_type})


def _is_empty_input(error: Exception | None) -> bool:
    return isinstance(error, RequestValidationError) and error.errors()[0]["type"] == "too_short"


_DOCS = {
    **TASK_ERRORS,
    400: permanent_error("The input is empty."),
    424: permanent_error("The model does not support this task, or inference failed."),
    500: {"description": "An internal error."},
}
ERRORS = Errors(with_error_model(_DOCS, TeiError), format_error)
