"""What the requests and answers of all tasks have in common."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, BeforeValidator, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from infinity_emb.primitives import Lane, Truncation
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


def parse_priority(value: Any) -> Lane | None:
    """A lane, or vLLM's and Cohere's number, which the later a request may be computed the higher it is.

    Raises PydanticCustomError.
    """
    if value is None or value == 0:
        return None
    if type(value) is int:
        return "bulk" if value > 0 else "interactive"
    if isinstance(value, str) and value in get_args(Lane):
        lane: Lane = "bulk" if value == "bulk" else "interactive"
        return lane
    raise PydanticCustomError("priority_type", "must be 'interactive', 'bulk' or a whole number")


Priority = Annotated[
    Lane | None,
    PlainValidator(parse_priority),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "enum": list(get_args(Lane))},
                {"type": "integer"},
                {"type": "null"},
            ],
            "description": "`interactive` is computed before `bulk`, which is never starved. A number above 0"
            " is bulk, one below 0 interactive. Without it the number of inputs decides. The header"
            " `x-priority` says the same.",
        }
    ),
]


class JsonBody(BaseModel):
    """What a route takes."""

    # The member that errors about one of the inputs are about.
    input_member: ClassVar[str] = "input"
    # Members that tell it from the other schemas of its route, any one of them; the first schema needs none.
    told_by: ClassVar[frozenset[str]] = frozenset()
    # How its dialect writes errors; None is the server's own way.
    error_shape: ClassVar[ErrorShape | None] = None


class TaskRequest(JsonBody):
    """A request to a model."""

    # Whether a model takes it in, and refuses it where too much waits.
    needs_room: ClassVar[bool] = True

    model: str | None = Field(None, description=MODEL)
    user: str | None = Field(None, description="Ignored.")
    priority: Priority = None
    timeout: float | None = Field(
        None,
        gt=0,
        description="Seconds after which the request is dropped with 504; the header `x-request-timeout` says"
        " the same.",
    )

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


MaxTokens = Annotated[
    Annotated[int, Field(ge=1, le=2**31 - 1)] | None,
    BeforeValidator(lambda value: None if value == -1 else value),
    Field(
        description="Cut at so many tokens, special ones included; with truncate=false, refuse more. -1, and"
        " more than the model takes, are the model's own limit.",
    ),
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
