"""Load a sentence-transformers model with torch and choose how it runs: device, dtype, attention, batch size.

Each choice carries its reason, for the log and `/models`. Knows nothing of queues or HTTP.
"""

from __future__ import annotations

import copy
import logging

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from infinity_emb.backends.base import LoadedModel, Tokenize
from infinity_emb.backends.torch_backend import InputLayout, TorchBackend
from infinity_emb.backends.torch_cores import SharedCores
from infinity_emb.backends.torch_device import Choice, choose_devices, choose_dtype
from infinity_emb.backends.torch_layout import choose_layout, default_prompt, random_ids
from infinity_emb.backends.warmup import DEFAULT_BATCH_TOKENS, find_batch_tokens, seconds_per_batch
from infinity_emb.config import EngineArgs
from infinity_emb.errors import StartupError
from infinity_emb.hardware import num_usable_cpus
from infinity_emb.model_files import ModelFiles, resolve_model_files
from infinity_emb.model_kind import detect_kind
from infinity_emb.primitives import Dtype, ModelInfo, PoolingMethod
from infinity_emb.tokenizing import PipelineTokenizer, RawTokenizer

logger = logging.getLogger("infinity_emb")

MAX_TOKENIZER_THREADS = 8


def load_model(args: EngineArgs) -> LoadedModel:
    """Load, check and warm up. Raises StartupError for whatever cannot be served."""
    devices = choose_devices(args)
    files = resolve_model_files(args.model_name_or_path, revision=args.revision)
    _check_kind(args, files)
    dtype = choose_dtype(args.dtype, devices[0])
    model = _load_pipeline(args, files, devices[0], getattr(torch, dtype.value))
    if args.dtype in (Dtype.float16, Dtype.bfloat16) and devices[0].type == "cpu":
        model, dtype = _keep_half_if_faster(model, dtype)
    transformer = _first_transformer(model)
    _apply_pooling(model, args.pooling_method)
    tokenize = make_tokenizer(model, transformer)
    layout, attention = choose_layout(model, transformer, max_tokens=max_tokens_of(model))
    info = _describe(model, files, devices[0], dtype, attention)
    replicas = _make_replicas(model, layout, devices, args)
    max_batch_tokens = args.max_batch_tokens or DEFAULT_BATCH_TOKENS[devices[0].type]
    if args.model_warmup and not args.max_batch_tokens:
        max_batch_tokens = find_batch_tokens(
            replicas[0], random_ids(transformer, info.max_tokens or 512), device_kind=devices[0].type
        )
    return LoadedModel(
        info=info,
        replicas=list(replicas),
        tokenize=tokenize,
        max_batch_tokens=max_batch_tokens,
        num_tokenizer_threads=args.tokenizer_threads or min(MAX_TOKENIZER_THREADS, num_usable_cpus()),
    )


def _check_kind(args: EngineArgs, files: ModelFiles) -> None:
    """A reranker loaded as an embedder would answer, and every vector would be meaningless."""
    kind = detect_kind(files.path)
    if kind != "embedder":
        raise StartupError(
            f"model {args.model_name_or_path!r} is of the kind {kind!r}; this version serves embedders only"
        )


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
    model.eval()
    # Parameters only: the frequencies of rotary positions are buffers and must stay float32.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def _loading_failure(args: EngineArgs, exc: Exception) -> str:
    text = " ".join(str(exc).split())
    if "trust_remote_code" in text:
        return (
            f"model {args.model_name_or_path!r} brings Python code of its own; --trust-remote-code runs it"
            " with your rights, so read it first"
        )
    return f"model {args.model_name_or_path!r} could not be loaded: {type(exc).__name__}: {text[:400]}"


def _keep_half_if_faster(model: SentenceTransformer, dtype: Choice) -> tuple[SentenceTransformer, Choice]:
    """Many CPUs compute half precision slower than float32: measure before believing."""
    full = copy.deepcopy(model).float()
    half_s, full_s = (_seconds_per_encode(each) for each in (model, full))
    if half_s < full_s:
        return model, Choice(dtype.value, f"measured {full_s / half_s:.1f}x as fast as float32 here")
    reason = f"{dtype.value} was asked for and measured {half_s / full_s:.1f}x slower on this CPU"
    logger.warning("using float32: %s", reason)
    return full, Choice("float32", reason)


def _seconds_per_encode(model: SentenceTransformer) -> float:
    texts = [
        "Half precision must earn its place: seven words of 3.14159, rivers and interest rates. " * 4
    ] * 8
    return seconds_per_batch(lambda: model.encode(texts, show_progress_bar=False))


def _first_transformer(model: SentenceTransformer) -> Transformer:
    first: object = next(iter(model))
    if not isinstance(first, Transformer):
        raise StartupError(
            f"the model starts with a {type(first).__name__} module; this version serves models that start"
            " with a Transformer module"
        )
    transformer: Transformer = first
    return transformer


def _apply_pooling(model: SentenceTransformer, method: PoolingMethod) -> None:
    if method is PoolingMethod.auto:
        return
    pooling = next((module for module in model if isinstance(module, Pooling)), None)
    if pooling is None:
        raise StartupError(f"--pooling-method {method} cannot be used: the model has no Pooling module")
    pooling.pooling_mode = method.value


def make_tokenizer(model: SentenceTransformer, transformer: Transformer) -> Tokenize:
    """The raw tokenizer where the text goes straight into it, else the pipeline's own preprocessing."""
    prompt = default_prompt(model)
    tokenizer = transformer.tokenizer
    max_tokens = max_tokens_of(model)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if tokenizer is None or backend is None or "message" in transformer.modality_config:
        return PipelineTokenizer(lambda text: _preprocess_one(model, text, prompt), max_tokens=max_tokens)
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


def _make_replicas(
    model: SentenceTransformer, layout: InputLayout, devices: list[torch.device], args: EngineArgs
) -> list[TorchBackend]:
    """One backend per device; replicas on the CPU share the weights and the cores."""
    cores = SharedCores(args.threads or num_usable_cpus()) if devices[0].type == "cpu" else None
    models = [model]
    for device in devices[1:]:
        models.append(model if device.type == "cpu" else copy.deepcopy(model).to(device))
    return [TorchBackend(each, layout=layout, cores=cores) for each in models]


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
        prompts={name: prompt or "" for name, prompt in model.prompts.items()},
        default_prompt_name=model.default_prompt_name,
        revision=files.revision,
        source=files.source,
    )
