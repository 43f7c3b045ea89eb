"""`/models`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from infinity_emb.primitives import Capability, ModelKind, OutputName


class ModelStats(BaseModel):
    """The queue of one model."""

    queue_fraction: float
    queue_absolute: int
    results_pending: int
    batch_size: int


class ModelEntry(BaseModel):
    """One served model and what was detected about it."""

    id: str
    stats: ModelStats
    object: Literal["model"]
    owned_by: Literal["infinity"]
    created: int
    backend: str = Field(description="As `engine`: the library that computes.")
    capabilities: list[Capability] = Field(description="First what the model is made for.")
    aliases: list[str]
    kind: ModelKind
    outputs: list[OutputName] = Field(description="What an embedder can answer; first its default.")
    labels: list[str] = Field(description="Of a classifier.")
    activation: str = Field(description="What makes scores of raw ones; `raw_scores` leaves it out.")
    similarity: str = Field(description="How vectors are meant to be compared.")
    embedding_dimension: int = Field(description="0 for a model whose answers are scores.")
    embedding_dtype: str
    max_tokens: int | None
    max_batch_tokens: int
    truncation_side: str = Field(description="Where the model's tokenizer cuts a text that is too long.")
    tasks: list[str] = Field(description="Names that choose a part of the model, for `input_type`.")
    prompts: dict[str, str]
    default_prompt_name: str | None
    engine: str
    engine_reason: str
    dtype: str
    dtype_reason: str
    device: str
    attention: str
    attention_reason: str
    pooling: str
    revision: str | None
    source: str
    files_version: str = Field(description="The revision; of a folder, another one when it is saved again.")
    graph: str = Field(description="The repository's file that is computed in place of torch's weights.")
    loaded: bool = Field(description="Whether it is in memory; the next request loads one that is not.")


class ModelList(BaseModel):
    """Every served model."""

    data: list[ModelEntry]
    object: Literal["list"]
