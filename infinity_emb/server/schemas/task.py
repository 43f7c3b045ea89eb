"""What the requests and answers of all tasks have in common."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from infinity_emb.primitives import Truncation
from infinity_emb.server.error_shape import ErrorShape

# What infinity_client sends where its user names no model.
NO_MODEL_NAMES = ("", "default/not-specified")
MODEL = "Served name or alias; the only model that is made for it where none is given."

Side = Literal["left", "right"]
_TRUNCATIONS: dict[str, Truncation] = {
    "none": "off",
    "start": "left",
    "left": "left",
    "end": "right",
    "right": "right",
}


class TaskRequest(BaseModel):
    """A request to a model."""

    # The member that errors about one of the inputs are about.
    input_member: ClassVar[str] = "input"
    # How its dialect writes errors; None is the server's own way.
    error_shape: ClassVar[ErrorShape | None] = None

    model: str | None = Field(None, description=MODEL)
    user: str | None = Field(None, description="Ignored.")

    @property
    def model_name(self) -> str | None:
        """The model that the client asked for, or None."""
        return None if self.model in NO_MODEL_NAMES else self.model


def parse_truncate(value: Any) -> Truncation | None:
    """true, false, or a vendor's word for where to cut. Raises PydanticCustomError."""
    if value is None:
        return None
    if isinstance(value, bool):
        return "model" if value else "off"
    if isinstance(value, str) and value.lower() in _TRUNCATIONS:
        return _TRUNCATIONS[value.lower()]
    raise PydanticCustomError(
        "truncate_type", "must be true or false, or one of 'NONE', 'START', 'END', 'left' and 'right'"
    )


Truncate = Annotated[
    Truncation | None,
    PlainValidator(parse_truncate),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "boolean"},
                {"type": "string", "enum": ["NONE", "START", "END", "left", "right"]},
                {"type": "null"},
            ],
            "description": "A text that is too long is refused with false and `NONE`. It loses its start"
            " with `START` and `left`, its end with `END` and `right`, and what the model's tokenizer cuts"
            " otherwise.",
        }
    ),
]
TruncationSide = Annotated[
    Side | None,
    BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value),
    Field(description="Where a text that is too long is cut."),
]


class Usage(BaseModel):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int


class TaskAnswer(BaseModel):
    """What stands beside the results of a task."""

    model: str
    usage: Usage
    id: str
    created: int
