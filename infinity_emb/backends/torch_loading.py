"""Load a sentence-transformers model with torch and choose how it runs: device, dtype, attention, batch size.

Each choice carries its reason, for the log and `/models`. Knows nothing of queues or HTTP.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.model import BaseModel

from infinity_emb.backends.base import InputOptions, LoadedModel
from infinity_emb.backends.torch_backend import Pipeline, TorchBackend
from infinity_emb.backends.torch_cores import SharedCores
from infinity_emb.backends.torch_device import (
    Choice,
    choose_devices,
    choose_full_dtype,
    free_bytes,
    free_memory,
    is_out_of_memory,
)
from infinity_emb.backends.torch_doors import DoorMaker, OpenedModel
from infinity_emb.backends.torch_models import (
    activation_of,
    capabilities_of,
    labels_of,
    load_sentence_transformers_model,
    max_tokens_of,
    outputs_of,
    pooling_of,
    sampling_rate_of,
    tasks_of,
    transformers_of,
)
from infinity_emb.backends.torch_quantized import quantize, seconds_per_answer
from infinity_emb.backends.torch_vocabulary import has_token_rows, vocabulary_of
from infinity_emb.backends.warmup import (
    DEFAULT_BATCH_TOKENS,
    find_batch_tokens,
    kind_of_device,
    sample_inputs,
)
from infinity_emb.config import EngineArgs
from infinity_emb.errors import ModelTooLarge, StartupError, one_line
from infinity_emb.hardware import num_tokenizer_threads, num_usable_cpus
from infinity_emb.model_files import ModelFiles, weights_bytes
from infinity_emb.model_kind import choose_kind
from infinity_emb.primitives import Dtype, ModelInfo, ModelKind

logger = logging.getLogger("infinity_emb")

# transformers changes settings of the whole process while it loads a model.
_ONE_AT_A_TIME = threading.Lock()
# A sparse model's head makes a value per token and word of the vocabulary; a batch may take this much memory.
_MAX_LOGITS_BYTES = {"cpu": 2**28, "mps": 2**29, "cuda": 2**32}


def load_model(args: EngineArgs, files: ModelFiles) -> LoadedModel:
    """Load, check and warm up. Raises StartupError for whatever cannot be served, and ModelTooLarge."""
    devices = choose_devices(args)
    return load_within_memory(args, files, devices[0], lambda: _load_on(args, files, devices))


def load_within_memory(
    args: EngineArgs, files: ModelFiles, device: torch.device, load: Callable[[], LoadedModel]
) -> LoadedModel:
    """What `load` makes, one model at a time. Raises what it raises, and ModelTooLarge for lack of memory."""
    try:
        with _ONE_AT_A_TIME:
            _check_fits(files, device)
            return load()
    except Exception as exc:
        if not is_out_of_memory(exc):
            raise
    # Only here, when the failure and what it came through are gone.
    gc.collect()
    free_memory(device)
    free = free_bytes(device)
    told = "" if free is None else f", where {free / 1e6:.0f} MB are free"
    raise ModelTooLarge(
        f"model {args.model_name_or_path!r} does not fit into the memory of {device}{told};"
        " unload another one, or choose a smaller --dtype"
    )


def _check_fits(files: ModelFiles, device: torch.device) -> None:
    """Raises MemoryError for weights that are larger than what is free of a CPU's memory.

    Linux hands out more memory than there is, and ends the process that then uses it.
    """
    free = free_bytes(device) if device.type == "cpu" else None
    if free is not None and weights_bytes(files.path) > free:
        raise MemoryError


def _load_on(args: EngineArgs, files: ModelFiles, devices: list[torch.device]) -> LoadedModel:
    kind = choose_kind(args, files.path)
    dtype = choose_full_dtype(args.dtype, devices[0])

    def load(dtype_name: str) -> BaseModel:
        number_format: torch.dtype = getattr(torch, dtype_name)
        return load_sentence_transformers_model(args, files, kind, devices[0], number_format)

    model = load(dtype.value)
    if args.dtype in (Dtype.float16, Dtype.bfloat16) and devices[0].type == "cpu":
        model, dtype = _keep_half_if_faster(model, dtype, lambda: load("float32"))
    if args.dtype in (Dtype.int8, Dtype.fp8):
        dtype = quantize(model, kind, args.dtype, dtype)
    return open_model(args, files, devices, PlacedModel(model, kind, dtype, str(devices[0])))


@dataclass(frozen=True, slots=True)
class PlacedModel:
    """A model on the first of its devices.

    dtype: its number format, and why.
    device_name: what computes its network, as `/models` calls it: `cpu`, `cuda:1`, `tensorrt`.
    """

    model: BaseModel
    kind: ModelKind
    dtype: Choice
    device_name: str


def open_model(
    args: EngineArgs, files: ModelFiles, devices: list[torch.device], placed: PlacedModel
) -> LoadedModel:
    """Find the ways into a model, make its replicas and warm up. Raises StartupError.

    devices: one per replica, of the modules around the network.
    """
    model, kind = placed.model, placed.kind
    opened = _open(args, model, kind)
    info = _describe(placed, files, opened)
    replicas = _make_replicas(opened.pipeline, devices, args)
    activation, activate = activation_of(model, kind)
    return LoadedModel(
        info=replace(info, activation=activation),
        replicas=list(replicas),
        prepare=opened.prepare,
        max_batch_tokens=_choose_batch_tokens(args, opened, placed, replicas[0]),
        num_tokenizer_threads=num_tokenizer_threads(args.tokenizer_threads),
        activate=activate,
        split=opened.raw_tokenizer.split if opened.raw_tokenizer else None,
        vocabulary=vocabulary_of(model),
        has_token_rows=has_token_rows(model, kind),
        sampling_rate=sampling_rate_of(model),
        free_memory=functools.partial(free_memory, devices[0]),
        prepares_inline=opened.raw_tokenizer is not None,
    )


def _open(args: EngineArgs, model: BaseModel, kind: ModelKind) -> OpenedModel:
    pipeline = Pipeline(
        model=model,
        layouts={},
        dense_name="scores" if kind in (ModelKind.reranker, ModelKind.classifier) else "sentence_embedding",
        max_active_dims=getattr(model, "max_active_dims", None),
    )
    try:
        return DoorMaker(pipeline, kind, outputs_of(model, kind)).open()
    except Exception as exc:  # whatever the model raises on its first inputs
        text = one_line(exc, 400)
        raise StartupError(
            f"model {args.model_name_or_path!r} was loaded but cannot compute: {type(exc).__name__}: {text}"
        ) from exc


@contextlib.contextmanager
def _threads_as_before() -> Iterator[None]:
    """Measuring batches sets how many cores torch uses on this thread, which is the caller's."""
    num_threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def _choose_batch_tokens(
    args: EngineArgs, opened: OpenedModel, placed: PlacedModel, replica: TorchBackend
) -> int:
    if args.max_batch_tokens:
        return args.max_batch_tokens
    kind, device_kind = placed.kind, kind_of_device(placed.device_name)
    max_tokens = DEFAULT_BATCH_TOKENS[device_kind]
    if args.model_warmup and opened.prepare.text_doors:
        outputs = outputs_of(opened.pipeline.model, kind)[:1] or ("dense",)
        is_pair = kind is ModelKind.reranker
        samples = sample_inputs(opened.prepare, InputOptions(outputs=outputs), is_pair=is_pair)
        with _threads_as_before():
            max_tokens = find_batch_tokens(replica, samples, device_kind=device_kind)
    transformers = transformers_of(opened.pipeline.model)
    if kind is ModelKind.sparse and transformers:
        bytes_per_token = 4 * int(transformers[0].model.config.vocab_size)
        max_tokens = min(max_tokens, max(256, _MAX_LOGITS_BYTES[device_kind] // bytes_per_token))
    return max_tokens


def _keep_half_if_faster(
    model: BaseModel, dtype: Choice, load_full: Callable[[], BaseModel]
) -> tuple[BaseModel, Choice]:
    """Many CPUs compute half precision slower than float32: measure before believing.

    load_full: the model in float32, from its files; the half one's weights are rounded already.
    """
    full = load_full()
    if not isinstance(model, SentenceTransformer):
        return full, Choice("float32", f"{dtype.value} was asked for, which CPUs compute slower")
    half_s, full_s = (seconds_per_answer(each) for each in (model, full))
    if half_s < full_s:
        return model, Choice(dtype.value, f"measured {full_s / half_s:.1f}x as fast as float32 here")
    reason = f"{dtype.value} was asked for and measured {half_s / full_s:.1f}x slower on this CPU"
    logger.warning("using float32: %s", reason)
    return full, Choice("float32", reason)


def _make_replicas(pipeline: Pipeline, devices: list[torch.device], args: EngineArgs) -> list[TorchBackend]:
    """One backend per device; replicas on the CPU share the weights and the cores."""
    cores = SharedCores(args.threads or num_usable_cpus()) if devices[0].type == "cpu" else None
    pipelines = [pipeline]
    for device in devices[1:]:
        is_shared = device.type == "cpu"
        model = pipeline.model if is_shared else copy.deepcopy(pipeline.model).to(device)
        pipelines.append(replace(pipeline, model=model))
    return [TorchBackend(each, cores=cores) for each in pipelines]


def _describe(placed: PlacedModel, files: ModelFiles, opened: OpenedModel) -> ModelInfo:
    model, kind = placed.model, placed.kind
    is_scoring = kind in (ModelKind.reranker, ModelKind.classifier)
    dimension = getattr(model, "truncate_dim", None) or (
        0 if is_scoring else model.get_embedding_dimension()  # type: ignore[operator]  # of all other kinds
    )
    tokenizer = getattr(model[0], "tokenizer", None)
    return ModelInfo(
        kind=kind,
        capabilities=capabilities_of(model, kind),
        outputs=outputs_of(model, kind),
        embedding_dimension=int(dimension or 0),
        max_tokens=max_tokens_of(model),
        truncation_side=getattr(tokenizer, "truncation_side", None) or "right",
        dtype=placed.dtype.value,
        dtype_reason=placed.dtype.reason,
        device=placed.device_name,
        attention=opened.attention.value,
        attention_reason=opened.attention.reason,
        pooling=pooling_of(model),
        similarity=str(getattr(model, "similarity_fn_name", None) or "cosine"),
        labels=labels_of(model, kind),
        prompts={name: prompt or "" for name, prompt in model.prompts.items()},
        default_prompt_name=model.default_prompt_name,
        tasks=tasks_of(model),
        revision=files.revision,
        source=files.source,
        files_version=files.version,
    )
