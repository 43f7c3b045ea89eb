"""`/models`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from infinity_emb.types import Capability, ModelKind, OutputName


class ModelStats(BaseModel):
    """The queue of one model."""

    queue_fraction: float = Field(description="Fill level of the queue; 1.0 is full.")
    queue_absolute: int = Field(description="Number of inputs in the queue.")
    results_pending: int = Field(description="Number of requests accepted and not yet completed.")
    batch_size: int = Field(description="Maximum number of inputs per batch.")


class ModelEntry(BaseModel):
    """One served model and what was detected about it."""

    id: str = Field(description="Served name.")
    stats: ModelStats
    object: Literal["model"]
    owned_by: Literal["infinity"]
    created: int = Field(description="Unix time in seconds at which the server started.")
    backend: str = Field(description="Deprecated alias of `engine`.", deprecated=True)
    capabilities: list[Capability] = Field(description="Supported tasks, the main task first.")
    aliases: list[str] = Field(description="Further names of the model.")
    kind: ModelKind
    outputs: list[OutputName] = Field(description="Available vectors of an embedder, the default first.")
    labels: list[str] = Field(description="Labels of a classifier.")
    activation: str = Field(description="Activation function applied to scores unless `raw_scores` is set.")
    similarity: str = Field(description="Similarity function that the vectors are made for.")
    embedding_dimension: int = Field(description="Dimensions of a vector; 0 if the model returns scores.")
    embedding_dtype: str = Field(description="Default data type of vectors.")
    max_tokens: int | None = Field(description="Maximum number of tokens per text.")
    max_model_len: int | None = Field(description="The same, with vLLM's name.")
    max_batch_tokens: int = Field(description="Maximum number of tokens per batch.")
    truncation_side: str = Field(description="Side at which the tokenizer truncates by default.")
    tasks: list[str] = Field(description="Values of `input_type` that select a part of the model.")
    prompts: dict[str, str] = Field(description="The model's prompts by name.")
    default_prompt_name: str | None = Field(description="Prompt used if a request names none.")
    engine: str = Field(description="Inference engine.")
    engine_reason: str = Field(description="Why this engine was chosen, in words.")
    dtype: str = Field(description="Data type of the weights.")
    dtype_reason: str = Field(description="Why this data type was chosen, in words.")
    device: str = Field(description="Device, and the number of replicas if there are several.")
    attention: str = Field(description="`packed` without padding, `padded`, or `none`.")
    attention_reason: str = Field(description="Why this attention was chosen, in words.")
    is_normalized: bool | None = Field(
        description="Whether vectors have length 1 by default; null if the model has none for texts."
    )
    pooling: str = Field(description="Pooling method.")
    revision: str | None = Field(description="Commit of the repository.")
    origin: str = Field(description="Where the weights were loaded from.")
    weights_fingerprint: str = Field(
        description="The revision, or for a local folder a value that changes when its files do."
    )
    graph_file: str = Field(description="Graph file used instead of torch's weights; empty if none.")
    is_loaded: bool = Field(description="Whether the model is in memory; if not, the next request loads it.")
    source: str = Field(description="Deprecated alias of `origin`.", deprecated=True)
    files_version: str = Field(description="Deprecated alias of `weights_fingerprint`.", deprecated=True)
    graph: str = Field(description="Deprecated alias of `graph_file`.", deprecated=True)
    loaded: bool = Field(description="Deprecated alias of `is_loaded`.", deprecated=True)


class ModelList(BaseModel):
    """All served models."""

    data: list[ModelEntry]
    object: Literal["list"]
