"""Options that decide which model is loaded and how: the part of `EngineArgs` that backends receive."""

# ruff: noqa: RUF009 - `option` returns a dataclass field, and its defaults are immutable

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from infinity_emb.config.limits import BatchLimits
from infinity_emb.config.options import option
from infinity_emb.types import (
    Device,
    Dtype,
    EmbeddingDtype,
    InferenceEngine,
    ModelKind,
    Normalization,
    PoolingMethod,
    TokenIdPolicy,
)

MAX_DEVICES = 64
MAX_THREADS = 1024
DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"


@dataclass(frozen=True)
class ModelOptions:
    """The model, its names and what it is served as."""

    model_name_or_path: str = option(
        DEFAULT_MODEL,
        "Hub id or local directory of the model.",
        flag="model-id",
        env="MODEL_ID",
        affects_speed=False,
    )
    _: KW_ONLY
    revision: str | None = option(None, "Branch, tag or commit of the hub model.", affects_speed=False)
    trust_remote_code: bool = option(
        False, "Run Python code from the model's repository.", "Its author can then run any code here."
    )
    served_model_name: str = option(
        "",
        "Served name, optionally followed by comma-separated aliases.",
        "Default: the last two parts of the model id. With a single model the option may be repeated: the"
        " further names are aliases.",
        affects_speed=False,
    )
    model_kind: ModelKind = option(
        ModelKind.auto,
        "What to serve the model as; auto reads its files.",
        "Generative rerankers (yes/no) are recognised by their name, or by this option.",
    )
    load_timeout_s: int = option(
        3600,
        "Time limit for loading the model; 0 means none.",
        "A download does not count.",
        minimum=0,
        affects_speed=False,
    )
    pooling_method: PoolingMethod = option(
        PoolingMethod.auto, "How to pool token vectors; auto reads the model's files."
    )
    embedding_dtype: EmbeddingDtype = option(
        EmbeddingDtype.float32, "Data type of embeddings, unless the request names one.", affects_speed=False
    )
    normalize: Normalization = option(
        Normalization.auto,
        "Scale vectors to length 1; auto follows the model's files.",
        "The routes of Cohere, Ollama and text-embeddings-inference also normalize with `auto`, as those"
        " servers do. Fields of a request take precedence.",
        affects_speed=False,
    )
    calibration_file: str = option(
        "",
        "File of texts, one per line, to calibrate int8 and uint8 embeddings.",
        "Default: texts that come with the package.",
        affects_speed=False,
    )
    token_ids: TokenIdPolicy = option(
        TokenIdPolicy.refuse,
        "Token IDs as input: rejected, the model's own, or OpenAI's.",
        "`cl100k` accepts the IDs of OpenAI's embedding models, which are decoded to text; it needs"
        " `infinity-emb[tiktoken]`.",
        affects_speed=False,
    )
    allow_missing_weights: bool = option(
        False,
        "Serve a model whose files lack weights.",
        "Missing weights are random and differ at each start. Without the option the model is refused.",
    )
    served_model_aliases: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ComputeOptions:
    """The library, the devices and the precision to compute with."""

    engine: InferenceEngine = option(
        InferenceEngine.torch,
        "Library to compute with; auto measures and keeps the fastest.",
        "`auto` measures the installed ones at the first start and chooses among those whose outputs match"
        " torch's.",
        affects_speed=False,
    )
    device: Device = option(Device.auto, "Device to compute on.")
    device_id: tuple[int, ...] = option(
        (),
        "Device indices, such as 0,1; one replica of the model on each.",
        check=lambda ids: f"names more than {MAX_DEVICES} devices" if len(ids) > MAX_DEVICES else None,
    )
    dtype: Dtype = option(Dtype.auto, "Data type of the weights; auto depends on the device.")
    threads: int = option(
        0, "CPU compute threads; 0 uses all CPUs of the container.", minimum=0, maximum=MAX_THREADS
    )
    tokenizer_threads: int = option(
        0,
        "Tokenizer threads; 0 depends on the number of cores.",
        minimum=0,
        maximum=MAX_THREADS,
        affects_speed=False,
    )
    graph_file: str = option(
        "",
        "ONNX or OpenVINO file in the model repository.",
        "For example `onnx/model_O3.onnx`. Default: its float32 file, or the one of `--dtype`; a float32 file"
        " whose outputs do not match torch's is exported again.",
        old_names=("onnx_file",),
    )
    onnx_provider: str = option(
        "auto",
        "ONNX Runtime execution provider; auto follows --device.",
        "`auto` prefers a GPU.",
        choices=("auto", "cpu", "cuda", "tensorrt", "rocm", "migraphx", "coreml", "openvino", "dml"),
    )
    compile: bool = option(
        False,
        "Compile layers at start, and use them if faster.",
        "With torch.compile, which takes from seconds to minutes. For packed inputs with `--engine torch`;"
        " needs a C++ compiler on CPUs, and Triton on GPUs. Without `--model-warmup` it has no effect.",
    )
    onnx_disable_optimize: bool = option(False, "Turn off ONNX Runtime's graph optimizations.")


@dataclass(frozen=True, kw_only=True)
class LoadOptions(BatchLimits, ComputeOptions, ModelOptions):
    """All options of the backends."""

    # Load the model in a child process first, because a client may have chosen its files.
    needs_trial: bool = False


@dataclass(frozen=True, kw_only=True)
class IgnoredOptions:
    """Options of infinity_emb 0.0.77 that are accepted without effect."""

    lengths_via_tokenize: bool = option(True, "Count tokens for `usage`; always done.", is_ignored=True)
    bettertransformer: bool = option(True, "Use fast attention; always done where possible.", is_ignored=True)
    onnx_do_not_prefer_quantized: bool = option(
        False, "Ignore quantized ONNX files; --dtype decides.", is_ignored=True
    )
