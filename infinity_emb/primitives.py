"""The words of this package: closed sets of choices and the small values that pass between floors.

Knows nothing of torch, HTTP or threads. Everybody imports it; it imports nobody but `errors`, for names that
users of `infinity_emb.primitives` have always imported from here.
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
# What can be computed of one input. Users ask for the first three; `multivector` is one vector per token, for
# late interaction. `chunks`: one vector per span of tokens. `maxsim`: the score of a text for a query.
# `tokens`: what the network says of each token, special ones included, before all pooling and projection.
OutputName = Literal["dense", "sparse", "multivector", "chunks", "maxsim", "tokens"]
# Where a text over the limit is cut; `off` refuses it, `model` cuts where the model's tokenizer does.
Truncation = Literal["model", "left", "right", "off"]
# Somebody waits for an interactive request; a bulk request takes what is left, and is never starved.
Lane = Literal["interactive", "bulk"]


class _NameEnum(str, Enum):
    """An enum that prints, compares and serialises as its plain value."""

    def __str__(self) -> str:
        return str(self.value)


class InferenceEngine(_NameEnum):
    """The library that computes."""

    torch = "torch"
    ctranslate2 = "ctranslate2"
    optimum = "optimum"
    onnx = optimum  # what it computes with: the package optimum has no part in it
    openvino = "openvino"
    neuron = "neuron"
    debugengine = "debugengine"
    auto = "auto"  # the fastest of those installed, by measurement


class ModelKind(_NameEnum):
    """What a model is made for; `auto` is what its files say."""

    auto = "auto"
    embedder = "embedder"
    reranker = "reranker"
    classifier = "classifier"
    sparse = "sparse"
    multivector = "multivector"


class Device(_NameEnum):
    """Where it computes; ROCm builds of torch call their devices `cuda`, and Intel's GPUs are `xpu`."""

    cpu = "cpu"
    cuda = "cuda"
    xpu = "xpu"
    mps = "mps"
    tensorrt = "tensorrt"
    xla = "xla"
    auto = "auto"


class Dtype(_NameEnum):
    """Number format of weights and activations."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"
    int16 = "int16"  # CTranslate2's, with MKL
    int8 = "int8"
    fp8 = "fp8"
    auto = "auto"


class EmbeddingDtype(_NameEnum):
    """Number format of the vectors that leave."""

    float32 = "float32"
    float16 = "float16"
    int8 = "int8"
    uint8 = "uint8"
    binary = "binary"
    ubinary = "ubinary"


class TokenIdsOf(_NameEnum):
    """Whose token ids a request may send instead of texts; `refuse` is nobody's."""

    refuse = "refuse"
    model = "model"
    cl100k = "cl100k"


class PoolingMethod(_NameEnum):
    """How token vectors become one vector; `auto` is what the model's files say."""

    mean = "mean"
    cls = "cls"
    auto = "auto"


class EmbeddingEncodingFormat(_NameEnum):
    """How a vector is written into an answer: into JSON, or as a body of bytes."""

    float = "float"
    base64 = "base64"
    bytes = "bytes"
    bytes_only = "bytes_only"


class Modality(_NameEnum):
    """What kind of thing is embedded."""

    text = "text"
    image = "image"
    audio = "audio"


class DeviceID(list[int]):
    """Devices by number, from `[0, 1]` or `"0,1"`; `EngineArgs(device_id=...)` takes those as well."""

    def __init__(self, ids: Iterable[int] | str = ()) -> None:
        super().__init__(
            int(each) for each in (filter(None, ids.split(",")) if isinstance(ids, str) else ids)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadingStrategy:
    """Where 0.0.77 placed a model, and how; `EngineArgs` takes one and does not read it."""

    device_mapping: Sequence[str]
    loading_dtype: object
    quantization_dtype: object
    device_placement: str | None = None


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

    kind: ModelKind
    capabilities: tuple[Capability, ...]  # first what the model is made for
    outputs: tuple[OutputName, ...] = ()  # what an embedder can answer; the first one where none is asked for
    embedding_dimension: int  # 0 for a model whose answers are scores
    max_tokens: int | None  # None: the model has no limit
    truncation_side: str = "right"
    dtype: str
    dtype_reason: str
    device: str
    attention: str  # "packed", "padded" or "none"
    attention_reason: str
    pooling: str
    activation: str = "none"  # of scores; raw_scores leaves it out
    similarity: str = "cosine"
    labels: tuple[str, ...] = ()
    prompts: dict[str, str]
    default_prompt_name: str | None
    tasks: tuple[str, ...] = ()  # names that choose a part of the model: routes, adapters
    revision: str | None
    source: str
    files_version: str = ""  # another one whenever the weights may be others
    graph: str = ""  # the repository's file that is computed in place of torch's weights
    engine: str = ""  # the library that computes; `backends.registry` says it
    engine_reason: str = "asked for"
