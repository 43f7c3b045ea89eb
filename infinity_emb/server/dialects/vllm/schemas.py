"""vLLM's `/score`, `/pooling` and its form of `/classify`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, BaseModel, Field, PlainValidator, WithJsonSchema

from infinity_emb.items import TokenIdsInput
from infinity_emb.preprocessing.prompts import MAX_PROMPT_CHARS
from infinity_emb.server.schemas.common import (
    DocumentTokens,
    MaxTokens,
    OptionalInt,
    QueryTokens,
    TaskRequest,
    TaskResponse,
    Truncate,
    TruncationSide,
)
from infinity_emb.server.schemas.embeddings import EmbedDtype, Endianness
from infinity_emb.server.schemas.inputs import TOKEN_IDS_SCHEMA, TextsPairsOrIds, parse_documents_or_ids
from infinity_emb.types import EmbeddingEncodingFormat

PoolingTask = Literal["embed", "classify", "token_embed", "token_classify"]


_TEXT_OR_OBJECT: dict[str, Any] = {
    "anyOf": [
        {"type": "string"},
        {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
        TOKEN_IDS_SCHEMA,
    ]
}
ScoreInputs = Annotated[
    list[str | TokenIdsInput],
    PlainValidator(parse_documents_or_ids),
    WithJsonSchema({"anyOf": [_TEXT_OR_OBJECT, {"type": "array", "items": _TEXT_OR_OBJECT, "minItems": 1}]}),
]


class VllmRequest(TaskRequest):
    """Fields of all requests."""

    use_activation: bool | None = Field(
        None,
        validation_alias=AliasChoices("use_activation", "activation"),
        description="false: return scores without the activation function, and vectors without"
        " normalization. Alias: `activation`.",
    )
    truncate: Truncate = None
    truncation_side: TruncationSide = None
    truncate_prompt_tokens: MaxTokens = None


class VllmScoreRequest(VllmRequest):
    """Pairs to score: one query for all documents, or one for each."""

    input_field: ClassVar[str] = "documents"

    queries: ScoreInputs = Field(
        validation_alias=AliasChoices("queries", "data_1", "text_1"),
        description="One search query, or one per document. Token ids stand for the text that they"
        " decode to. Aliases: `data_1`, `text_1`.",
    )
    documents: ScoreInputs = Field(
        validation_alias=AliasChoices("documents", "items", "data_2", "text_2"),
        description="Documents to score. Aliases: `items`, `data_2`, `text_2`.",
    )
    max_tokens_per_query: QueryTokens = None
    max_tokens_per_doc: DocumentTokens = None
    instruction: str | None = Field(
        None, max_length=MAX_PROMPT_CHARS, description="Instruction for rerankers that accept one."
    )


class VllmPoolingRequest(VllmRequest):
    """Texts and the pooling task."""

    input: TextsPairsOrIds
    task: PoolingTask | None = Field(
        None,
        description="`embed`: one vector per text. `token_embed`: one vector per token, trained for late"
        " interaction or else the last hidden state. `classify`: the probabilities of the labels. By default"
        " the model's main task.",
    )
    encoding_format: EmbeddingEncodingFormat | None = Field(
        None,
        description="`base64`: the bytes of each result, row by row. `bytes`: a binary body with the bytes of"
        " all results, and a JSON header `metadata`; `bytes_only`: the same without the header.",
    )
    embed_dtype: EmbedDtype | None = Field(
        None, description="Data type of binary and base64 results; `float32` by default."
    )
    endianness: Endianness | None = Field(
        None, description="Byte order of binary and base64 results; `little` by default."
    )
    dimensions: OptionalInt = Field(
        None, description="Truncate vectors to this many dimensions and normalize them."
    )


class VllmClassifyRequest(VllmRequest):
    """Texts or pairs of texts to classify."""

    input: TextsPairsOrIds


_TEXT = "Munich is in Germany."

VLLM_SCORE_EXAMPLES: dict[str, Any] = {
    "one_query": {
        "summary": "One query, two documents",
        "value": {"queries": "Where is Munich?", "documents": ["The sky is blue.", _TEXT]},
    },
    "pairs": {
        "summary": "One document per query",
        "value": {"text_1": ["Where is Munich?", "Who barks?"], "text_2": [_TEXT, "A dog."]},
    },
}
VLLM_POOLING_EXAMPLES: dict[str, Any] = {
    "embed": {"summary": "One vector per text", "value": {"input": [_TEXT, "A dog."], "task": "embed"}},
    "token_embed": {"summary": "One vector per token", "value": {"input": _TEXT, "task": "token_embed"}},
    "classify": {"summary": "Probabilities", "value": {"input": "I like it.", "task": "classify"}},
}
VLLM_CLASSIFY_EXAMPLES: dict[str, Any] = {
    "vllm": {
        "summary": "vLLM: probabilities in the order of the labels",
        "value": {"input": ["I like it.", "I do not like it."], "use_activation": True},
    }
}


class VllmScore(BaseModel):
    """The score of one pair."""

    index: int = Field(description="Index of the document in the request.")
    object: Literal["score"]
    score: float = Field(description="Relevance to the query; higher is better.")


class VllmScoreResponse(TaskResponse):
    """The scores, in the order of the documents."""

    object: Literal["list"]
    data: list[VllmScore]


class VllmPooled(BaseModel):
    """The result for one text."""

    index: int = Field(description="Index of the text in the request.")
    object: Literal["pooling"]
    data: list[float] | list[list[float]] | str = Field(description="A vector, or a matrix for tokens.")


class VllmPoolingResponse(TaskResponse):
    """The results for all texts, in order."""

    object: Literal["list"]
    data: list[VllmPooled]


class VllmLabelled(BaseModel):
    """The classification of one input."""

    index: int = Field(description="Index of the input in the request.")
    label: str = Field(description="The most likely label.")
    probs: list[float] = Field(description="Probabilities, in the order of `labels` in `/models`.")
    num_classes: int = Field(description="Number of labels.")


class VllmClassifyResponse(TaskResponse):
    """The classifications of all inputs, in order."""

    object: Literal["list"]
    data: list[VllmLabelled]
