"""vLLM's `/score`, `/pooling` and its form of `/classify`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, BaseModel, Field, PlainValidator, WithJsonSchema

from infinity_emb.prompts import MAX_PROMPT_CHARS
from infinity_emb.server.inputs import Inputs, TextsOrPairs, parse_documents
from infinity_emb.server.schemas.task import MaxTokens, TaskAnswer, TaskRequest, Truncate, TruncationSide

PoolingTask = Literal["embed", "classify", "token_embed", "token_classify"]


def parse_score_inputs(value: Any) -> list[str]:
    """One text or a list of them, or of objects with a `text` → a list. Raises PydanticCustomError."""
    return parse_documents([value] if isinstance(value, (str, dict)) else value)


_TEXT_OR_OBJECT: dict[str, Any] = {
    "anyOf": [
        {"type": "string"},
        {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
    ]
}
ScoreInputs = Annotated[
    list[str],
    PlainValidator(parse_score_inputs),
    WithJsonSchema({"anyOf": [_TEXT_OR_OBJECT, {"type": "array", "items": _TEXT_OR_OBJECT, "minItems": 1}]}),
]


class VllmRequest(TaskRequest):
    """What all of them have."""

    use_activation: bool | None = Field(
        None,
        validation_alias=AliasChoices("use_activation", "activation"),
        description="false: scores without the model's activation function, and what a model says of tokens"
        " not scaled to length 1. `activation` is another name.",
    )
    truncate: Truncate = None
    truncation_side: TruncationSide = None
    truncate_prompt_tokens: MaxTokens = None


class VllmScoreRequest(VllmRequest):
    """Pairs of texts: one query for all documents, or one for each."""

    input_member: ClassVar[str] = "documents"

    queries: ScoreInputs = Field(
        validation_alias=AliasChoices("queries", "data_1", "text_1"),
        description="What is searched for; `data_1` and `text_1` are other names.",
    )
    documents: ScoreInputs = Field(
        validation_alias=AliasChoices("documents", "items", "data_2", "text_2"),
        description="What may answer it; `items`, `data_2` and `text_2` are other names.",
    )
    instruction: str | None = Field(
        None,
        max_length=MAX_PROMPT_CHARS,
        description="What counts as an answer, for rerankers that take an instruction.",
    )


class VllmPoolingRequest(VllmRequest):
    """Texts, and what is to be made of them."""

    input: Inputs
    task: PoolingTask | None = Field(
        None,
        description="`embed`: a vector for each text; `token_embed`: one for each token, made for late"
        " interaction or else the last hidden state; `classify`: the probabilities of the labels. Without it,"
        " what the model is made for.",
    )
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="`base64`: little-endian float32, row by row."
    )
    dimensions: int | None = Field(
        None, description="Keep that many values of each vector, scaled back to length 1; 0 keeps all."
    )


class VllmClassifyRequest(VllmRequest):
    """Texts, or pairs of texts, to be labelled."""

    told_by: ClassVar[frozenset[str]] = frozenset({"use_activation", "activation"})

    input: TextsOrPairs


_TEXT = "Munich is in Germany."

VLLM_SCORE_EXAMPLES: dict[str, Any] = {
    "one_query": {
        "summary": "One query, two documents",
        "value": {"queries": "Where is Munich?", "documents": ["The sky is blue.", _TEXT]},
    },
    "pairs": {
        "summary": "A document for each query",
        "value": {"text_1": ["Where is Munich?", "Who barks?"], "text_2": [_TEXT, "A dog."]},
    },
}
VLLM_POOLING_EXAMPLES: dict[str, Any] = {
    "embed": {"summary": "A vector for each text", "value": {"input": [_TEXT, "A dog."], "task": "embed"}},
    "token_embed": {"summary": "A vector for each token", "value": {"input": _TEXT, "task": "token_embed"}},
    "classify": {"summary": "Probabilities", "value": {"input": "I like it.", "task": "classify"}},
}
VLLM_CLASSIFY_EXAMPLES: dict[str, Any] = {
    "vllm": {
        "summary": "vLLM's form: probabilities in the order of the labels",
        "value": {"input": ["I like it.", "I do not like it."], "use_activation": True},
    },
}


class VllmScore(BaseModel):
    """The score of the pair at `index`."""

    index: int
    object: Literal["score"]
    score: float


class VllmScoreResponse(TaskAnswer):
    """The scores, in the order of the documents."""

    object: Literal["list"]
    data: list[VllmScore]


class VllmPooled(BaseModel):
    """What was made of the text at `index`; a matrix where it is of tokens."""

    index: int
    object: Literal["pooling"]
    data: list[float] | list[list[float]] | str


class VllmPoolingResponse(TaskAnswer):
    """What was made of each text, in order."""

    object: Literal["list"]
    data: list[VllmPooled]


class VllmLabelled(BaseModel):
    """The most likely label, and the probabilities of all in the order of `labels` of `/models`."""

    index: int
    label: str
    probs: list[float]
    num_classes: int


class VllmClassifyResponse(TaskAnswer):
    """The labels of each input, in order."""

    object: Literal["list"]
    data: list[VllmLabelled]
