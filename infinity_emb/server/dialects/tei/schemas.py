"""Requests and responses of Text Embeddings Inference; the field `model` is an addition.

Source: https://huggingface.github.io/text-embeddings-inference/
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema

from infinity_emb.server.requests.fields import choose_truncation
from infinity_emb.server.schemas.classify import LabelScore
from infinity_emb.server.schemas.common import OptionalInt, TaskRequest, Truncate, TruncationSide
from infinity_emb.server.schemas.inputs import Documents, Inputs, TextsOrIds, parse_texts_or_pairs
from infinity_emb.types import Truncation

PROMPT_NAME = "Name of one of the model's prompts, which is prepended to each text."


class PredictInputs(NamedTuple):
    """The inputs of /predict; the response to a batch has one list of labels per input."""

    texts_or_pairs: list[str | tuple[str, str]]
    is_batch: bool


def parse_predict_inputs(value: Any) -> PredictInputs:
    """Parse one input, which is a text, [text] or [text, text], or a batch, which is a list of such lists.

    More than two texts are also a batch. Raises PydanticCustomError.
    """
    if isinstance(value, list) and any(isinstance(item, list) for item in value):
        singles = [item[0] if isinstance(item, list) and len(item) == 1 else item for item in value]
        return PredictInputs(parse_texts_or_pairs(singles), is_batch=True)
    if isinstance(value, list) and len(value) > 2:
        # TEI's own server refuses it; two texts are a pair there, three or more can only be a batch.
        return PredictInputs(parse_texts_or_pairs(value), is_batch=True)
    is_pair = isinstance(value, list) and len(value) == 2
    return PredictInputs(parse_texts_or_pairs([value] if is_pair else value), is_batch=False)


_TEXT_OR_PAIR = {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 2}


class TeiRequest(TaskRequest):
    """Fields of most requests of Text Embeddings Inference."""

    input_field: ClassVar[str] = "inputs"

    truncate: Truncate = None
    truncation_direction: TruncationSide = None


class TeiEmbedRequest(TeiRequest):
    """Texts to embed."""

    inputs: TextsOrIds
    prompt_name: str | None = Field(None, description=PROMPT_NAME)
    normalize: bool | None = Field(
        None, description="Normalize vectors to length 1, the default; false returns them unchanged."
    )
    dimensions: OptionalInt = Field(None, description="Truncate vectors to this many dimensions.")


class TeiPredictRequest(TeiRequest):
    """Texts or pairs of texts to classify."""

    inputs: Annotated[
        PredictInputs,
        PlainValidator(parse_predict_inputs),
        WithJsonSchema(
            {
                "anyOf": [{"type": "string"}, _TEXT_OR_PAIR, {"type": "array", "items": _TEXT_OR_PAIR}],
                "description": "A text, `[text]` or a pair `[text, text]`; for a batch a list of those.",
            }
        ),
    ]
    raw_scores: bool | None = Field(None, description="Return logits instead of probabilities.")


class TeiRerankRequest(TeiRequest):
    """A query and the texts to rank."""

    input_field: ClassVar[str] = "texts"

    query: str = Field(description="The search query.")
    texts: Documents
    raw_scores: bool | None = Field(
        None, description="Return scores without applying the model's activation function."
    )
    return_text: bool | None = Field(None, description="Include the texts in the response.")
    top_n: OptionalInt = Field(None, ge=0, description="Number of texts to return; 0 means all, the default.")


class Sentences(BaseModel):
    """A sentence and the sentences to compare it with."""

    source_sentence: str = Field(description="The sentence to compare with.")
    sentences: Inputs


class SimilarityParameters(BaseModel):
    """Options for encoding the sentences."""

    truncate: Truncate = None
    truncation_direction: TruncationSide = None
    prompt_name: Annotated[str | None, Field(description=PROMPT_NAME)] = None


def read_truncation(options: TeiRequest | SimilarityParameters) -> Truncation:
    """Combine the two fields about truncation. Raises a 422 if they contradict each other."""
    return choose_truncation(options.truncate, truncation_direction=options.truncation_direction)


class TeiSimilarityRequest(TaskRequest):
    """Sentences to compare with one other."""

    input_field: ClassVar[str] = "inputs"

    inputs: Sentences = Field(description="The sentences to compare.")
    parameters: SimilarityParameters | None = Field(None, description="How to encode the sentences.")


class TeiAnyRequest(TaskRequest):
    """The request of any task."""

    model_config = ConfigDict(extra="allow")
    input_field: ClassVar[str] = "inputs"

    inputs: Any = Field(None, description="Inputs of `/embed`, `/embed_sparse`, `/predict` or `/similarity`.")
    query: Any = Field(None, description="The search query, with `texts`.")
    texts: Any = Field(None, description="The texts to rank.")


_TEXT = "Munich is in Germany."
_OTHER = "The sky is blue."
_SENTENCES = {"source_sentence": _TEXT, "sentences": ["Munich is a city.", _OTHER]}

TEI_EMBED_EXAMPLES: dict[str, Any] = {
    "text": {"summary": "One text", "value": {"inputs": _TEXT}},
    "texts": {
        "summary": "Two texts, without normalization",
        "value": {"inputs": [_TEXT, _OTHER], "truncate": True, "normalize": False},
    },
}
TEI_PREDICT_EXAMPLES: dict[str, Any] = {
    "text": {"summary": "The labels of one text", "value": {"inputs": "I like it."}},
    "pair": {
        "summary": "The labels of a pair of texts",
        "value": {"inputs": [_TEXT, "Munich is in Europe."]},
    },
    "batch": {
        "summary": "A batch of a text and a pair",
        "value": {"inputs": [["I like it."], [_TEXT, _OTHER]], "raw_scores": True},
    },
}
TEI_SIMILARITY_EXAMPLES: dict[str, Any] = {
    "sentences": {
        "summary": "The similarity of two sentences to a third",
        "value": {"inputs": _SENTENCES, "parameters": {"truncate": True}},
    }
}
TEI_RERANK_EXAMPLES: dict[str, Any] = {
    "tei": {
        "summary": "Text Embeddings Inference: `texts` instead of `documents`",
        "value": {"query": "Where is Munich?", "texts": [_OTHER, _TEXT], "return_text": True},
    }
}
TEI_ANY_EXAMPLES: dict[str, Any] = {
    "similarity": {"summary": "Like /similarity", "value": {"inputs": _SENTENCES}},
    "rerank": {"summary": "Like /rerank", "value": {"query": "Where is Munich?", "texts": [_OTHER, _TEXT]}},
}


class TeiRanked(BaseModel):
    """The score of one text."""

    index: int = Field(description="Index of the text in the request.")
    score: float = Field(description="Relevance to the query; higher is better.")
    text: str | None = Field(None, description="Only present with `return_text`.")


TeiVectors = list[list[float]]
TeiPredictions = list[LabelScore] | list[list[LabelScore]]
