"""Closed sets of choices, and small values that pass between layers.

It re-exports the exceptions that users of infinity_emb 0.0.77 import from `infinity_emb.primitives`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal, NamedTuple, TypedDict

from infinity_emb.errors import AudioCorruption as AudioCorruption
from infinity_emb.errors import ImageCorruption as ImageCorruption
from infinity_emb.errors import MatryoshkaDimError as MatryoshkaDimError
from infinity_emb.errors import ModelNotDeployedError as ModelNotDeployedError

Capability = Literal["embed", "rerank", "classify", "image_embed", "audio_embed", "embed_sparse"]
# Outputs of one input. Users request the first three: `multivector` has one vector per token, for late
# interaction. `chunks` has one vector per span of tokens, `maxsim` the score of a text for a query, `tokens`
# the last hidden state of each token, special tokens included, before pooling and projection.
OutputName = Literal["dense", "sparse", "multivector", "chunks", "maxsim", "tokens"]
# The side on which a text over the limit is truncated; `off` rejects it, `model` follows its tokenizer.
Truncation = Literal["model", "left", "right", "off"]
# Interactive requests go first; bulk requests get the remaining capacity and are never starved.
Lane = Literal["interactive", "bulk"]

# Limit for the names of served models and for names in requests.
MAX_MODEL_NAME_CHARS = 512


class _NameEnum(str, Enum):
    """Enum that prints, compares and serialises as its plain value."""

    def __str__(self) -> str:
        return str(self.value)


class InferenceEngine(_NameEnum):
    """Library that computes the network."""

    torch = "torch"
    ctranslate2 = "ctranslate2"
    optimum = "optimum"
    onnx = optimum  # ONNX Runtime; the package optimum is not used
    openvino = "openvino"
    neuron = "neuron"
    debugengine = "debugengine"
    auto = "auto"  # the fastest installed engine, by measurement


class ModelKind(_NameEnum):
    """Task that a model was trained for; `auto` detects it from the files."""

    auto = "auto"
    embedder = "embedder"
    reranker = "reranker"
    classifier = "classifier"
    sparse = "sparse"
    multivector = "multivector"


class Device(_NameEnum):
    """Device to compute on. ROCm devices are `cuda` to torch; Intel GPUs are `xpu`."""

    cpu = "cpu"
    cuda = "cuda"
    xpu = "xpu"
    mps = "mps"
    tensorrt = "tensorrt"
    xla = "xla"
    auto = "auto"


class Dtype(_NameEnum):
    """Data type of weights and activations."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"
    int16 = "int16"  # CTranslate2 with MKL only
    int8 = "int8"
    fp8 = "fp8"
    auto = "auto"


class EmbeddingDtype(_NameEnum):
    """Data type of the vectors in a response."""

    float32 = "float32"
    float16 = "float16"
    int8 = "int8"
    uint8 = "uint8"
    binary = "binary"
    ubinary = "ubinary"


class TokenIdPolicy(_NameEnum):
    """Token ids that a request may send instead of texts: none, the model's own, or OpenAI's cl100k_base."""

    refuse = "refuse"
    model = "model"
    cl100k = "cl100k"


class PoolingMethod(_NameEnum):
    """Pooling of token vectors into one vector; `auto` follows the model's files."""

    mean = "mean"
    cls = "cls"
    auto = "auto"


class Normalization(_NameEnum):
    """Scale vectors to length 1, or leave them as they are.

    auto: follow the model's files; always on the routes of dialects whose servers always normalize.
    """

    auto = "auto"
    always = "always"
    never = "never"


class EmbeddingEncodingFormat(_NameEnum):
    """Encoding of vectors in a response: in JSON, or as a binary body."""

    float = "float"
    base64 = "base64"
    bytes = "bytes"
    bytes_only = "bytes_only"


class Modality(_NameEnum):
    """Kind of input."""

    text = "text"
    image = "image"
    audio = "audio"


class DeviceID(list[int]):
    """List of device indices, made from `[0, 1]` or `"0,1"`."""

    def __init__(self, ids: Iterable[int] | str = ()) -> None:
        super().__init__(
            int(index) for index in (filter(None, ids.split(",")) if isinstance(ids, str) else ids)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadingStrategy:
    """Placement of a model in infinity_emb 0.0.77; `EngineArgs` accepts and ignores it."""

    device_mapping: Sequence[str]
    loading_dtype: object
    quantization_dtype: object
    device_placement: str | None = None


class OverloadStatus(NamedTuple):
    """Fill level of an engine's queue."""

    queue_fraction: float  # queued items / limit
    queue_absolute: int  # queued items
    results_absolute: int  # accepted requests without a response yet


@dataclass(frozen=True, slots=True)
class RerankReturnType:
    """Score of one document; `index` is its position in the request."""

    relevance_score: float
    document: str
    index: int


class ClassifyReturnType(TypedDict):
    """Score of one label."""

    label: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """Facts detected about a loaded model, as `/models` and the start-up log show them."""

    kind: ModelKind
    capabilities: tuple[Capability, ...]  # the main task first
    outputs: tuple[OutputName, ...] = ()  # the first one is the default
    embedding_dimension: int  # 0 for a model that returns scores
    max_tokens: int | None  # None: no limit
    truncation_side: str = "right"
    dtype: str
    dtype_reason: str
    device: str
    attention: str  # "packed", "padded" or "none"
    attention_reason: str
    pooling: str
    activation: str = "none"  # applied to scores unless raw_scores is set
    similarity: str = "cosine"
    labels: tuple[str, ...] = ()
    prompts: dict[str, str]
    default_prompt_name: str | None
    tasks: tuple[str, ...] = ()  # names that select a route or adapter of the model
    revision: str | None
    source: str
    is_normalized: bool | None = None  # whether vectors of texts have length 1, as measured at start
    files_version: str = ""  # changes whenever the weights may have changed
    graph: str = ""  # the graph file that is computed instead of torch's weights
    engine: str = ""  # set by `backends.registry`
    engine_reason: str = "--engine, or its default"
