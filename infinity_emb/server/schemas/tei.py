"""The routes of Text Embeddings Inference: their requests, answers and errors; `model` is ours.

Source: https://huggingface.github.io/text-embeddings-inference/
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, NamedTuple

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException

from infinity_emb.errors import BadInput, EngineNotReady, ModelNotDeployedError, Overloaded, ServingError
from infinity_emb.server.error_shape import ErrorShape, Failure, ShapedError
from infinity_emb.server.inputs import Documents, Inputs, TextsOrIds, parse_texts_or_pairs
from infinity_emb.server.schemas.task import TaskRequest, Truncate, TruncationSide

PROMPT_NAME = "The model's own prompt that goes before each text."
# Status and `error_type`; a status of None is as it was.
_KINDS: dict[type[Exception], tuple[int | None, str]] = {
    ModelNotDeployedError: (424, "Backend"),
    BadInput: (422, "Validation"),
    Overloaded: (429, "Overloaded"),
    EngineNotReady: (503, "Unhealthy"),
    ServingError: (424, "Backend"),
    RequestValidationError: (422, "Validation"),
    HTTPException: (None, "Validation"),
}


class TeiError(BaseModel):
    """Any answer of 400 and above."""

    error: str
    error_type: str = Field(description="`Validation`, `Empty`, `Backend`, `Overloaded` or `Unhealthy`.")


def shape_error(failure: Failure) -> ShapedError:
    """The statuses of its errors are others: what is asked of the wrong model, and what failed, is a 424."""
    status, kind = next(
        (_KINDS[each] for each in type(failure.error).__mro__ if each in _KINDS), (None, "Backend")
    )
    if _is_about_nothing(failure.error):
        status, kind = 400, "Empty"
    return ShapedError(status or failure.status, {"error": failure.message, "error_type": kind})


def _is_about_nothing(error: Exception | None) -> bool:
    return isinstance(error, RequestValidationError) and error.errors()[0]["type"] == "too_short"


class PredictInputs(NamedTuple):
    """is_batch: whether each input has a list of labels of its own."""

    texts_or_pairs: list[str | tuple[str, str]]
    is_batch: bool


def parse_predict_inputs(value: Any) -> PredictInputs:
    """A text, [text] and [text, text] are one input; a list of such lists is a batch.

    Raises PydanticCustomError.
    """
    if isinstance(value, list) and value and isinstance(value[0], list):
        singles = [each[0] if isinstance(each, list) and len(each) == 1 else each for each in value]
        if not any(isinstance(each, str) for each in value):
            return PredictInputs(parse_texts_or_pairs(singles), is_batch=True)
        raise PydanticCustomError("string_type", "must be one text or pair, or a list of [text] and of pairs")
    if isinstance(value, list) and len(value) > 2:
        raise PydanticCustomError(
            "string_type", "is a pair of texts where it is a list of texts; send a batch as [[text], [text]]"
        )
    is_pair = isinstance(value, list) and len(value) == 2
    return PredictInputs(parse_texts_or_pairs([value] if is_pair else value), is_batch=False)


_TEXT_OR_PAIR = {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 2}


class TeiRequest(TaskRequest):
    """A request that is answered, errors too, as Text Embeddings Inference does."""

    input_member: ClassVar[str] = "inputs"
    error_shape: ClassVar[ErrorShape | None] = shape_error

    truncate: Truncate = None
    truncation_direction: TruncationSide = None


class TeiEmbedRequest(TeiRequest):
    """Texts to embed."""

    inputs: TextsOrIds
    prompt_name: str | None = Field(None, description=PROMPT_NAME)
    normalize: bool | None = Field(
        None, description="Scale vectors to length 1, unless it is false: then they are the model's own."
    )
    dimensions: int | None = Field(None, description="Keep that many values of each vector.")


class TeiPredictRequest(TeiRequest):
    """A text or a pair of texts to be labelled, or several."""

    inputs: Annotated[
        PredictInputs,
        PlainValidator(parse_predict_inputs),
        WithJsonSchema(
            {
                "anyOf": [{"type": "string"}, _TEXT_OR_PAIR, {"type": "array", "items": _TEXT_OR_PAIR}],
                "description": "A text, `[text]`, or `[text, text]` that are read together; of several a list"
                " of such lists.",
            }
        ),
    ]
    raw_scores: bool | None = Field(None, description="Logits instead of probabilities.")


class TeiRerankRequest(TeiRequest):
    """A query, and the texts that may answer it."""

    input_member: ClassVar[str] = "texts"
    told_by: ClassVar[frozenset[str]] = frozenset({"texts"})

    query: str = Field(description="What is searched for.")
    texts: Documents
    raw_scores: bool | None = Field(None, description="Leave out the model's activation function.")
    return_text: bool | None = Field(None, description="Answer the texts too.")
    top_n: int | None = Field(None, gt=0, description="Only so many of the best; all where not given.")


class Sentences(BaseModel):
    """A sentence, and those that it is compared with."""

    source_sentence: str
    sentences: Inputs


class SimilarityParameters(BaseModel):
    """How the sentences are read."""

    truncate: Truncate = None
    truncation_direction: TruncationSide = None
    prompt_name: Annotated[str | None, Field(description=PROMPT_NAME)] = None


class TeiSimilarityRequest(TaskRequest):
    """Sentences to be compared with one."""

    input_member: ClassVar[str] = "inputs"
    error_shape: ClassVar[ErrorShape | None] = shape_error

    inputs: Sentences = Field(description="What is compared.")
    parameters: SimilarityParameters | None = Field(None, description="How the sentences are read.")


class TeiAnyRequest(TaskRequest):
    """The body of whatever the model is made for."""

    model_config = ConfigDict(extra="allow")
    input_member: ClassVar[str] = "inputs"
    error_shape: ClassVar[ErrorShape | None] = shape_error

    inputs: Any = Field(
        None, description="As `/embed`, `/embed_sparse`, `/predict` or `/similarity` takes it."
    )
    query: Any = Field(None, description="With `texts`: what is searched for.")
    texts: Any = Field(None, description="What may answer the query.")


_TEXT = "Munich is in Germany."
_OTHER = "The sky is blue."
_SENTENCES = {"source_sentence": _TEXT, "sentences": ["Munich is a city.", _OTHER]}

TEI_EMBED_EXAMPLES: dict[str, Any] = {
    "text": {"summary": "One text", "value": {"inputs": _TEXT}},
    "texts": {
        "summary": "Two texts, the vectors as the model makes them",
        "value": {"inputs": [_TEXT, _OTHER], "truncate": True, "normalize": False},
    },
}
TEI_PREDICT_EXAMPLES: dict[str, Any] = {
    "text": {"summary": "The labels of one text", "value": {"inputs": "I like it."}},
    "pair": {"summary": "Of two texts together", "value": {"inputs": [_TEXT, "Munich is in Europe."]}},
    "batch": {
        "summary": "Of a text and of a pair",
        "value": {"inputs": [["I like it."], [_TEXT, _OTHER]], "raw_scores": True},
    },
}
TEI_SIMILARITY_EXAMPLES: dict[str, Any] = {
    "sentences": {
        "summary": "How similar two sentences are to one",
        "value": {"inputs": _SENTENCES, "parameters": {"truncate": True}},
    }
}
TEI_RERANK_EXAMPLES: dict[str, Any] = {
    "tei": {
        "summary": "Text Embeddings Inference: `texts` instead of `documents`, and a list for an answer",
        "value": {"query": "Where is Munich?", "texts": [_OTHER, _TEXT], "return_text": True},
    }
}
TEI_ANY_EXAMPLES: dict[str, Any] = {
    "similarity": {"summary": "As /similarity", "value": {"inputs": _SENTENCES}},
    "rerank": {"summary": "As /rerank", "value": {"query": "Where is Munich?", "texts": [_OTHER, _TEXT]}},
}


class TeiRanked(BaseModel):
    """The score of the text at `index` of the request."""

    index: int
    score: float
    text: str | None = Field(None, description="Left out unless `return_text` asks for it.")


class TeiPrediction(BaseModel):
    """How much a label fits."""

    score: float
    label: str


class TeiInfo(BaseModel):
    """One served model."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    served_model_name: str
    model_type: dict[str, dict[str, Any]] = Field(description="`embedding`, `classifier` or `reranker`.")
    max_concurrent_requests: int
    max_input_length: int | None
    max_batch_tokens: int
    max_batch_requests: int
    max_client_batch_size: int
    auto_truncate: bool
    version: str
    sha: str | None
    docker_label: str | None


TeiVectors = list[list[float]]
TeiPredictions = list[TeiPrediction] | list[list[TeiPrediction]]
