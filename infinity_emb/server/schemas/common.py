"""Fields and base classes shared by the requests and responses of all tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_args

from pydantic import AliasChoices, BaseModel, BeforeValidator, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from infinity_emb.types import MAX_MODEL_NAME_CHARS, Lane, Truncation

# Values that infinity_client sends if its user names no model.
NO_MODEL_NAMES = ("", "default/not-specified")
MODEL = "Served name or alias. Optional if only one model supports the task."

Side = Literal["left", "right"]
_TRUNCATIONS: dict[str, Truncation] = {
    "none": "off",
    "start": "left",
    "left": "left",
    "end": "right",
    "right": "right",
}


def refuse_bool(value: Any) -> Any:
    """Return the value; pydantic would read true as 1. Raises PydanticCustomError for true and false."""
    if isinstance(value, bool):
        raise PydanticCustomError("number_type", "must be a number, not true or false")
    return value


# Numbers of requests; a test checks that no request has other ones.
OptionalInt = Annotated[int | None, BeforeValidator(refuse_bool)]
OptionalFloat = Annotated[float | None, BeforeValidator(refuse_bool)]


def parse_priority(value: Any) -> Lane | None:
    """Parse a lane, or the number of vLLM and Cohere, where a higher number is less urgent.

    Raises PydanticCustomError.
    """
    if value is None or value == 0:
        return None
    if type(value) is int:
        return "bulk" if value > 0 else "interactive"
    if isinstance(value, str) and value in get_args(Lane):
        lane: Lane = "bulk" if value == "bulk" else "interactive"
        return lane
    raise PydanticCustomError("priority_type", "must be 'interactive', 'bulk' or an integer")


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
            "description": "`interactive` requests run before `bulk` ones, which are never starved. Positive"
            " integers mean bulk, negative ones interactive. By default the number of inputs decides. Can"
            " also be set with the header `x-priority`.",
        }
    ),
]


class JsonBody(BaseModel):
    """The JSON body of a request."""

    # The field that holds the inputs.
    input_field: ClassVar[str] = "input"


class Refusal(NamedTuple):
    """Why a field that would change the result is refused.

    remedy: what to do instead.
    harmless: values that change nothing.
    """

    remedy: str
    harmless: tuple[object, ...] = (None,)


# Fields of vLLM's requests that apply to chat templates and to tokenizers.
REFUSED: Mapping[str, Refusal] = {
    "messages": Refusal("chat templates are not applied; send texts", harmless=(None, [])),
    "chat_template": Refusal("chat templates are not applied; leave it out"),
    "chat_template_kwargs": Refusal("chat templates are not applied; leave it out", harmless=(None, {})),
    "add_special_tokens": Refusal(
        "special tokens are added as the model was trained; leave it out, or send token ids to /pooling",
        harmless=(None, True),
    ),
}


class TaskRequest(JsonBody):
    """Fields of all requests to a model."""

    # Fields that it does not have and that would change the result.
    refused: ClassVar[Mapping[str, Refusal]] = REFUSED
    # Whether it uses a place in the model's queue, so that it is refused when the queue is full.
    needs_capacity: ClassVar[bool] = True

    model: str | None = Field(None, max_length=MAX_MODEL_NAME_CHARS, description=MODEL)
    user: Any = Field(None, description="Ignored.")
    priority: Priority = None
    timeout: OptionalFloat = Field(
        None,
        gt=0,
        description="Seconds after which the request fails with 504. Can also be set with the header"
        " `x-request-timeout`.",
    )

    @property
    def model_name(self) -> str | None:
        """The requested model, or None."""
        return None if self.model in NO_MODEL_NAMES else self.model


def parse_truncate(value: Any) -> Truncation | None:
    """Parse true, false, or a vendor's name for a side. Raises PydanticCustomError."""
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
            "description": "How to handle a text that is too long. false and `NONE` reject it; `START` and"
            " `left` remove its start, `END` and `right` its end; true, the default, truncates like the"
            " model's tokenizer.",
        }
    ),
]
TruncationSide = Annotated[
    Side | None,
    BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value),
    Field(description="Side at which a text that is too long is truncated."),
]


TokensKept = Annotated[
    Annotated[int, Field(ge=1, le=2**31 - 1)] | None,
    BeforeValidator(lambda value: None if value == -1 else refuse_bool(value)),
]
MaxTokens = Annotated[
    TokensKept,
    Field(
        description="Maximum number of tokens per text, special tokens included: longer texts are truncated,"
        " or rejected with truncate=false. -1 and values above the model's limit mean the model's limit."
    ),
]

QueryTokens = Annotated[
    TokensKept,
    Field(
        validation_alias=AliasChoices("max_tokens_per_query", "max_query_length"),
        description="Keep this many tokens of the query. Alias: `max_query_length`.",
    ),
]
DocumentTokens = Annotated[
    TokensKept,
    Field(
        validation_alias=AliasChoices("max_tokens_per_doc", "max_doc_length"),
        description="Keep this many tokens of each document. Alias: `max_doc_length`.",
    ),
]
UseActivation = Annotated[
    bool | None,
    Field(
        validation_alias=AliasChoices("use_activation", "activation"),
        description="false: return scores without the model's activation function. Alias: `activation`.",
    ),
]


class Usage(BaseModel):
    """Token counts."""

    prompt_tokens: int = Field(description="Number of tokens processed.")
    total_tokens: int = Field(description="The same number.")


class TaskResponse(BaseModel):
    """Fields of all responses, next to the results of the task."""

    model: str = Field(description="Served name of the model.")
    usage: Usage
    id: str = Field(description="Unique id of the response.")
    created: int = Field(description="Unix time in seconds.")
