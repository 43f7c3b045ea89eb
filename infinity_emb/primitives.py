"""The words of this package: closed sets of choices and the small values that pass between floors.

Knows nothing of torch, HTTP or threads; numpy at most. Everybody imports it, it imports nobody.
The names are those that users of `infinity_emb.primitives` have always imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal, NamedTuple, TypedDict

Capability = Literal["embed", "rerank", "classify", "image_embed", "audio_embed"]


class _NameEnum(str, Enum):
    """An enum that prints, compares and serialises as its plain value."""

    def __str__(self) -> str:
        return str(self.value)


class InferenceEngine(_NameEnum):
    """The library that computes."""

    torch = "torch"
    ctranslate2 = "ctranslate2"
    optimum = "optimum"
    neuron = "neuron"
    debugengine = "debugengine"


class Device(_NameEnum):
    """Where it computes; ROCm builds of torch call their devices `cuda`."""

    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"
    tensorrt = "tensorrt"
    xla = "xla"
    auto = "auto"


class Dtype(_NameEnum):
    """Number format of weights and activations."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"
    int8 = "int8"
    fp8 = "fp8"
    auto = "auto"


class EmbeddingDtype(_NameEnum):
    """Number format of the vectors that leave."""

    float32 = "float32"
    int8 = "int8"
    uint8 = "uint8"
    binary = "binary"
    ubinary = "ubinary"


class PoolingMethod(_NameEnum):
    """How token vectors become one vector; `auto` is what the model's files say."""

    mean = "mean"
    cls = "cls"
    auto = "auto"


class EmbeddingEncodingFormat(_NameEnum):
    """How a vector is written into a JSON answer."""

    float = "float"
    base64 = "base64"


class Modality(_NameEnum):
    """What kind of thing is embedded."""

    text = "text"
    image = "image"
    audio = "audio"


class OverloadStatus(NamedTuple):
    """How full an engine's queue is."""

    queue_fraction: float  # waiting items / limit
    queue_absolute: int  # waiting items
    results_absolute: int  # accepted requests that are not answered yet


@dataclass(frozen=True, slots=True)
class RerankReturnType:
    """One document's score; `index` is its place in the request."""

    relevance_score: float
    document: str
    index: int


class ClassifyReturnType(TypedDict):
    """One label's score."""

    label: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What was detected about a loaded model, as `/models` and the start-up log show it."""

    embedding_dimension: int
    max_tokens: int | None  # None: the model has no limit
    capabilities: tuple[Capability, ...]
    dtype: str
    dtype_reason: str
    device: str
    attention: str  # "packed" or "padded"
    attention_reason: str
    pooling: str
    prompts: dict[str, str]
    default_prompt_name: str | None
    revision: str | None
    source: str
