"""Load a sentence-transformers model with torch and choose how it runs: device, dtype, attention, batch size.

Each choice carries its reason, for the log and `/models`. Knows nothing of queues or HTTP.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
from typing import Any, NamedTuple

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from infinity_emb.backends import packed_attention
from infinity_emb.backends.base import Batch, LoadedModel, Tokenize
from infinity_emb.backends.torch_backend import PACKED_FEATURES, InputLayout, TorchBackend
from infinity_emb.backends.warmup import DEFAULT_BATCH_TOKENS, find_batch_tokens, seconds_per_batch
from infinity_emb.config import EngineArgs
from infinity_emb.errors import StartupError
from infinity_emb.hardware import num_usable_cpus
from infinity_emb.model_files import ModelFiles, resolve_model_files
from infinity_emb.primitives import Device, Dtype, ModelInfo, PoolingMethod
from infinity_emb.tokenizing import PipelineTokenizer, RawTokenizer

logger = logging.getLogger("infinity_emb")

# How far a packed row may be from the same text alone, relative to the largest value, before the model
# is taken to be one that cannot be packed. Rounding stays far below; a wrong mask is far above.
_PACKED_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_SAMPLE = (
    "Packed sequences must not see each other. The quick brown fox jumps over the lazy dog, while thirteen"
    " wizards debate whether numbers such as 3.14159 or 2,718 describe rivers, circles and interest rates. "
)
_MAX_CHECKED_TOKENS = 1100
MAX_TOKENIZER_THREADS = 8


class Choice(NamedTuple):
    """A value and why it was chosen."""

    value: str
    reason: str


def load_model(args: EngineArgs) -> LoadedModel:
    """Load, check and warm up. Raises StartupError for whatever cannot be served."""
    devices = choose_devices(args)
    files = resolve_model_files(args.model_name_or_path, revision=args.revision)
    dtype = choose_dtype(args.dtype, devices[0])
    model = _load_pipeline(args, files, devices[0], getattr(torch, dtype.value))
    if args.dtype in (Dtype.float16, Dtype.bfloat16) and devices[0].type == "cpu":
        model, dtype = _keep_half_if_faster(model, dtype)
    transformer = _first_transformer(model)
    _apply_pooling(model, args.pooling_method)
    tokenize = make_tokenizer(model, transformer)
    layout, attention = choose_layout(model, transformer, tokenize)
    info = _describe(model, files, devices[0], dtype, attention)
    replicas = _make_replicas(model, layout, info, devices, args)
    max_batch_tokens = args.max_batch_tokens or DEFAULT_BATCH_TOKENS[devices[0].type]
    if args.model_warmup and not args.max_batch_tokens:
        max_batch_tokens = find_batch_tokens(replicas[0], _sample_ids(tokenize, info.max_tokens))
    return LoadedModel(
        replicas=list(replicas),
        tokenize=tokenize,
        max_batch_tokens=max_batch_tokens,
        num_tokenizer_threads=args.tokenizer_threads or min(MAX_TOKENIZER_THREADS, num_usable_cpus()),
    )


def choose_devices(args: EngineArgs) -> list[torch.device]:
    """One device per replica. Raises StartupError for a device that is not here."""
    kind = _choose_device_kind(args.device)
    if kind == "cpu":
        return [torch.device("cpu")] * max(1, len(args.device_id))
    if kind == "mps":
        return [torch.device("mps")]
    num_devices = torch.cuda.device_count()
    ids = args.device_id or tuple(range(num_devices))
    missing = [number for number in ids if number >= num_devices]
    if missing:
        raise StartupError(f"--device-id {missing} is not here: there are {num_devices} devices, from 0")
    return [torch.device("cuda", number) for number in ids]


def _choose_device_kind(device: Device) -> str:
    if device in (Device.tensorrt, Device.xla):
        raise StartupError(f"--device {device} is not for --engine torch; use cuda, mps, cpu or auto")
    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device is Device.auto:
        return next(kind for kind, is_here in has.items() if is_here)
    if not has[device.value]:
        raise StartupError(
            f"--device {device} is not available: torch {torch.__version__} sees no such device;"
            " install a torch build for it, or use --device auto"
        )
    return device.value


def choose_dtype(dtype: Dtype, device: torch.device) -> Choice:
    """The number format of weights and activations. Raises StartupError for int8 and fp8."""
    if dtype in (Dtype.int8, Dtype.fp8):
        raise StartupError(
            f"--dtype {dtype} is not available in this version; use float32, float16 or bfloat16"
        )
    if dtype is not Dtype.auto:
        return Choice(dtype.value, "asked for")
    if device.type != "cuda":
        return Choice("float32", f"exact, and usually the fastest on {device.type}")
    if torch.cuda.is_bf16_supported():
        return Choice("bfloat16", "this GPU computes it natively")
    return Choice("float16", "this GPU has no bfloat16")


def _load_pipeline(
    args: EngineArgs, files: ModelFiles, device: torch.device, dtype: torch.dtype
) -> SentenceTransformer:
    try:
        model = SentenceTransformer(
            str(files.path),
            device=str(device),
            trust_remote_code=args.trust_remote_code,
            model_kwargs={"dtype": dtype},
            local_files_only=True,
        )
    except Exception as exc:  # whatever a model's files can make the libraries raise
        raise StartupError(_loading_failure(args, exc)) from exc
    return model.eval().to(dtype)


def _loading_failure(args: EngineArgs, exc: Exception) -> str:
    text = " ".join(str(exc).split())[:400]
    if "trust_remote_code" in text:
        return (
            f"model {args.model_name_or_path!r} brings Python code of its own; --trust-remote-code runs it with"
            " your rights, so read it first"
        )
    return f"model {args.model_name_or_path!r} could not be loaded: {type(exc).__name__}: {text}"


def _keep_half_if_faster(
    model: SentenceTransformer, dtype: Choice
) -> tuple[SentenceTransformer, Choice]:
    """Many CPUs compute half precision slower than float32: measure before believing."""
    full = copy.deepcopy(model).float()
    half_s, full_s = (_seconds_per_encode(each) for each in (model, full))
    if half_s < full_s:
        return model, Choice(dtype.value, f"measured {full_s / half_s:.1f}x as fast as float32 here")
    reason = f"{dtype.value} was asked for and measured {half_s / full_s:.1f}x slower on this CPU"
    logger.warning("using float32: %s", reason)
    return full, Choice("float32", reason)


def _seconds_per_encode(model: SentenceTransformer) -> float:
    texts = [_SAMPLE] * 8
    return seconds_per_batch(lambda: model.encode(texts, show_progress_bar=False))


def _first_transformer(model: SentenceTransformer) -> Transformer:
    first = model[0]
    if not isinstance(first, Transformer):
        raise StartupError(
            f"the model starts with a {type(first).__name__} module; this version serves models that start"
            " with a Transformer module"
        )
    return first


def _apply_pooling(model: SentenceTransformer, method: PoolingMethod) -> None:
    if method is PoolingMethod.auto:
        return
    pooling = next((module for module in model if isinstance(module, Pooling)), None)
    if pooling is None:
        raise StartupError(f"--pooling-method {method} cannot be used: the model has no Pooling module")
    pooling.pooling_mode = method.value


def make_tokenizer(model: SentenceTransformer, transformer: Transformer) -> Tokenize:
    """The raw tokenizer where the text goes straight into it, else the pipeline's own preprocessing."""
    prompt = model.prompts.get(model.default_prompt_name or "", "")
    tokenizer = transformer.tokenizer
    max_tokens = max_tokens_of(model)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or "message" in transformer.modality_config:
        return PipelineTokenizer(
            lambda text: _preprocess_one(model, text, prompt), max_tokens=max_tokens
        )
    return RawTokenizer(
        backend, max_tokens=max_tokens, truncation_side=tokenizer.truncation_side, prompt=prompt
    )


def _preprocess_one(model: SentenceTransformer, text: str, prompt: str) -> list[int]:
    features = model.preprocess([text], prompt=prompt or None)
    ids: list[int] = features["input_ids"][0].tolist()
    return ids


def max_tokens_of(model: SentenceTransformer) -> int | None:
    """The limit that sentence-transformers cuts at; None where transformers' placeholder stands for none."""
    limit = model.max_seq_length
    return None if limit is None or limit > 10**9 else int(limit)


def choose_layout(
    model: SentenceTransformer, transformer: Transformer, tokenize: Tokenize
) -> tuple[InputLayout, Choice]:
    """Packed where the architecture allows it and a comparison with single texts bears it out."""
    padded = InputLayout(
        is_packed=False,
        position_offset=0,
        has_type_ids="token_type_ids" in getattr(transformer.tokenizer, "model_input_names", []),
        pad_token_id=getattr(transformer.tokenizer, "pad_token_id", None) or 0,
        pads_left=getattr(transformer.tokenizer, "padding_side", "right") == "left",
        prompt_length=_excluded_prompt_length(model, transformer),
    )
    network = transformer.model
    if not network.is_backend_compatible():
        return padded, Choice("padded", f"{network.config.model_type} has attention code of its own")
    if transformer.transformer_task != "feature-extraction":
        return padded, Choice("padded", f"its task is {transformer.transformer_task}")
    packed = InputLayout(
        is_packed=True,
        position_offset=_first_position(network),
        has_type_ids=padded.has_type_ids,
        pad_token_id=padded.pad_token_id,
        pads_left=padded.pads_left,
        prompt_length=padded.prompt_length,
    )
    reason = _try_packing(model, transformer, padded, packed, tokenize)
    return (packed, Choice("packed", reason.reason)) if reason.value == "packed" else (padded, reason)


def _try_packing(
    model: SentenceTransformer,
    transformer: Transformer,
    padded: InputLayout,
    packed: InputLayout,
    tokenize: Tokenize,
) -> Choice:
    """Install the first kernel whose packed rows equal the rows of single texts; else leave it padded."""
    network = transformer.model
    original = network.config._attn_implementation
    forward_params = transformer.model_forward_params
    batch = _check_batch(tokenize, network.config, max_tokens_of(model))
    expected = np.concatenate([_rows(model, padded, single) for single in _singles(batch)])
    packed_attention.register()
    failures = []
    for kernel in _kernels(model):
        network.set_attn_implementation(kernel)
        if forward_params is not None:
            transformer.model_forward_params = forward_params | PACKED_FEATURES
        try:
            difference = float(np.abs(_rows(model, packed, batch) - expected).max() / np.abs(expected).max())
        except Exception as exc:  # whatever a foreign architecture raises means that it cannot be packed
            failures.append(f"{kernel}: {type(exc).__name__}: {exc}")
            continue
        if difference <= _PACKED_TOLERANCE[model.dtype]:
            return Choice("packed", f"{kernel}, {difference:.0e} from single texts")
        failures.append(f"{kernel} differs by {difference:.0e} from single texts")
    network.set_attn_implementation(original)
    transformer.model_forward_params = forward_params
    return Choice("padded", " ".join("; ".join(failures).split())[:300])


def _kernels(model: SentenceTransformer) -> list[str]:
    if model.device.type != "cuda" or model.dtype == torch.float32:
        return [packed_attention.GROUPED]
    has_varlen = importlib.util.find_spec("torch.nn.attention.varlen") is not None
    return [packed_attention.VARLEN, packed_attention.GROUPED] if has_varlen else [packed_attention.GROUPED]


def _rows(model: SentenceTransformer, layout: InputLayout, batch: Batch) -> np.ndarray[Any, Any]:
    backend = TorchBackend(model, layout=layout, info=_NO_INFO, num_threads=1)
    return backend.launch(batch).collect()


def _check_batch(tokenize: Tokenize, config: Any, max_tokens: int | None) -> Batch:
    """Short and long sequences, one longer than a local attention window where there is one."""
    window = getattr(config, "sliding_window", None) or 0
    longest = min(max_tokens or _MAX_CHECKED_TOKENS, max(96, window + 32), _MAX_CHECKED_TOKENS)
    ids = _sample_ids(tokenize, longest)
    sequences = [ids[:7], ids[:longest], ids[: longest // 3], ids[:7], ids[: longest // 2]]
    return Batch(np.concatenate(sequences), [len(sequence) for sequence in sequences])


def _sample_ids(tokenize: Tokenize, num_tokens: int | None) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Token ids of real words, about `num_tokens` of them."""
    repeats = 1 + (num_tokens or 512) // 40
    return tokenize([_SAMPLE * repeats], truncate=True)[0]


def _singles(batch: Batch) -> list[Batch]:
    ends = np.cumsum(batch.lengths)
    return [
        Batch(batch.token_ids[end - length : end], [length])
        for end, length in zip(ends, batch.lengths, strict=True)
    ]


def _first_position(network: torch.nn.Module) -> int:
    """RoBERTa's learned positions start behind its padding index; all others at 0.

    Its embeddings are told by having both a padding index and a table of positions.
    """
    for module in network.modules():
        padding_idx = getattr(module, "padding_idx", None)
        if isinstance(padding_idx, int) and isinstance(
            getattr(module, "position_embeddings", None), torch.nn.Embedding
        ):
            return padding_idx + 1
    return 0


def _excluded_prompt_length(model: SentenceTransformer, transformer: Transformer) -> int | None:
    """Tokens of the default prompt, where the model's pooling leaves the prompt out."""
    prompt = model.prompts.get(model.default_prompt_name or "", "")
    leaves_out = any(isinstance(module, Pooling) and not module.include_prompt for module in model)
    if not prompt or not leaves_out:
        return None
    length: int | None = transformer.preprocess(["text"], prompt=prompt).get("prompt_length")
    return length


def _make_replicas(
    model: SentenceTransformer,
    layout: InputLayout,
    info: ModelInfo,
    devices: list[torch.device],
    args: EngineArgs,
) -> list[TorchBackend]:
    """One backend per device; replicas on the CPU share the weights and divide the cores."""
    num_threads = max(1, (args.threads or num_usable_cpus()) // len(devices))
    models = [model]
    for device in devices[1:]:
        models.append(model if device.type == "cpu" else copy.deepcopy(model).to(device))
    return [TorchBackend(each, layout=layout, info=info, num_threads=num_threads) for each in models]


def _describe(
    model: SentenceTransformer, files: ModelFiles, device: torch.device, dtype: Choice, attention: Choice
) -> ModelInfo:
    pooling = [str(module.pooling_mode) for module in model if isinstance(module, Pooling)]
    return ModelInfo(
        embedding_dimension=int(model.truncate_dim or model.get_embedding_dimension() or 0),
        max_tokens=max_tokens_of(model),
        capabilities=("embed",),
        dtype=dtype.value,
        dtype_reason=dtype.reason,
        device=str(device),
        attention=attention.value,
        attention_reason=attention.reason,
        pooling=", ".join(pooling) or "none",
        prompts=dict(model.prompts),
        default_prompt_name=model.default_prompt_name,
        revision=files.revision,
        source=f"{files.source} {files.path}",
    )


_NO_INFO = ModelInfo(
    embedding_dimension=0,
    max_tokens=None,
    capabilities=(),
    dtype="",
    dtype_reason="",
    device="",
    attention="",
    attention_reason="",
    pooling="",
    prompts={},
    default_prompt_name=None,
    revision=None,
    source="",
)
