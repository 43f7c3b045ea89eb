"""Load a sentence-transformers model with torch and choose how it runs: device, dtype, attention, batch size.

Each choice carries its reason, for the log and `/models`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from sentence_transformers.base.model import BaseModel

from infinity_emb.backends.base import LoadedModel
from infinity_emb.backends.closeness import make_scores
from infinity_emb.backends.out_of_memory import is_out_of_memory
from infinity_emb.backends.torch.acceleration import accelerate, preserve_num_threads
from infinity_emb.backends.torch.backend import TorchBackend
from infinity_emb.backends.torch.cpu_threads import SharedCores, choose_min_tokens
from infinity_emb.backends.torch.cpu_weights import store_input_major
from infinity_emb.backends.torch.device import (
    Choice,
    choose_devices,
    choose_full_dtype,
    free_bytes,
    free_memory,
    is_cpu,
    measure_memory,
)
from infinity_emb.backends.torch.forward import TorchModel
from infinity_emb.backends.torch.half_precision import keep_half_if_faster
from infinity_emb.backends.torch.int8.quantize import quantize
from infinity_emb.backends.torch.network_timer import TorchNetworkTimer
from infinity_emb.backends.torch.onednn_products import use_onednn
from infinity_emb.backends.torch.prepared_model import PreparedModel, prepare_model
from infinity_emb.backends.torch.st_introspection import (
    describe_pooling,
    find_transformers,
    get_activation,
    get_capabilities,
    get_labels,
    get_max_tokens,
    get_outputs,
    get_sampling_rate,
    get_tasks,
)
from infinity_emb.backends.torch.st_load import load_sentence_transformers_model
from infinity_emb.backends.torch.unknown_tokens import refuse_unknown_tokens
from infinity_emb.backends.torch.vocabulary import has_token_vectors, make_vocabulary
from infinity_emb.backends.warmup import (
    DEFAULT_BATCH_TOKENS,
    encode_samples,
    find_batch_tokens,
    get_device_kind,
)
from infinity_emb.config.model_options import LoadOptions
from infinity_emb.errors import ModelTooLarge, StartupError, one_line
from infinity_emb.hardware import num_tokenizer_threads, num_usable_cpus
from infinity_emb.hub.detect import choose_kind
from infinity_emb.hub.file_selection import count_weight_bytes
from infinity_emb.hub.resolve import ModelFiles
from infinity_emb.items import Encoded, InputOptions
from infinity_emb.types import Dtype, ModelInfo, ModelKind

logger = logging.getLogger("infinity_emb")

# transformers changes global settings while it loads a model.
_ONE_AT_A_TIME = threading.Lock()
# Limit of a batch's logits: a sparse model's head has a value per token and vocabulary entry.
_MAX_LOGITS_BYTES = {"cpu": 2**28, "mps": 2**29, "cuda": 2**32}


def load_model(args: LoadOptions, files: ModelFiles) -> LoadedModel:
    """Load, check and warm up a model. Raise StartupError if it cannot be served, and ModelTooLarge."""
    devices = choose_devices(args)
    return load_within_memory(args, files, devices[0], lambda: _load_on(args, files, devices))


def load_within_memory(
    args: LoadOptions, files: ModelFiles, device: torch.device, load: Callable[[], LoadedModel]
) -> LoadedModel:
    """Call `load`, one model at a time. Raise what it raises, and ModelTooLarge for lack of memory.

    Raises TimeoutError if another model has been loading for longer than this one may take.
    """
    try:
        with _one_at_a_time(args.load_timeout_s):
            _check_fits(files, device)
            return load()
    except Exception as exc:
        if not is_out_of_memory(exc):
            raise
    # Not in the `except` block: the exception's frames hold memory.
    gc.collect()
    free_memory(device)
    free = free_bytes(device)
    details = "" if free is None else f", where {free / 1e6:.0f} MB are free"
    raise ModelTooLarge(
        f"model {args.model_name_or_path!r} does not fit into the memory of {device}{details};"
        " unload another one, or choose a smaller --dtype"
    )


@contextlib.contextmanager
def _one_at_a_time(timeout_s: float) -> Iterator[None]:
    if not _ONE_AT_A_TIME.acquire(timeout=timeout_s or -1):
        raise TimeoutError(f"another model has been loading for over {timeout_s:g} s")
    try:
        yield
    finally:
        _ONE_AT_A_TIME.release()


def _check_fits(files: ModelFiles, device: torch.device) -> None:
    """Raise MemoryError for weights that are larger than the free memory of a CPU.

    Linux overcommits memory, and kills the process that then uses it.
    """
    free = free_bytes(device) if is_cpu(device) else None
    if free is not None and count_weight_bytes(files.path) > free:
        raise MemoryError


def _load_on(args: LoadOptions, files: ModelFiles, devices: list[torch.device]) -> LoadedModel:
    kind = choose_kind(args, files.path)
    dtype = choose_full_dtype(args.dtype, devices[0])

    def load(dtype_name: str) -> BaseModel:
        return load_sentence_transformers_model(args, files, kind, devices[0], getattr(torch, dtype_name))

    model = load(dtype.value)
    if args.dtype in (Dtype.float16, Dtype.bfloat16) and is_cpu(devices[0]):
        model, dtype = keep_half_if_faster(model, kind, dtype, lambda: load("float32"))
    if args.dtype in (Dtype.int8, Dtype.fp8):
        dtype = quantize(model, kind, args.dtype, dtype)
    store_input_major(model)
    use_onednn(model)
    return open_model(args, files, devices, ModelOnDevice(model, kind, dtype, str(devices[0])))


@dataclass(frozen=True, slots=True)
class ModelOnDevice:
    """A model on the first of its devices.

    dtype: with the reason for it.
    device_name: of the network, as in `/models`: `cpu`, `cuda:1`, `tensorrt`.
    """

    model: BaseModel
    kind: ModelKind
    dtype: Choice
    device_name: str


def open_model(
    args: LoadOptions, files: ModelFiles, devices: list[torch.device], placed: ModelOnDevice
) -> LoadedModel:
    """Select encoders, create replicas and warm up. Raise StartupError.

    devices: one per replica, for the modules around the network.
    """
    model, kind = placed.model, placed.kind
    prepared = _prepare(args.model_name_or_path, model, kind)
    info = _describe(placed, files, prepared)
    cores = SharedCores(args.threads or num_usable_cpus()) if is_cpu(devices[0]) else None
    replicas = _make_replicas(prepared.torch_model, devices, cores)
    activation, activate = get_activation(model, kind)
    if args.model_warmup:
        score = functools.partial(make_scores, kind=kind, activate=activate)
        accelerate(replicas, prepared, kind, score, may_compile=args.compile)
    samples = _encode_samples(prepared, kind) if args.model_warmup and prepared.text_encoders else []
    if cores and samples and _has_torch_network(model):
        choose_min_tokens(cores, replicas, samples)
    return LoadedModel(
        info=replace(info, activation=activation),
        replicas=list(replicas),
        encode=refuse_unknown_tokens(model, prepared.encode),
        max_batch_tokens=args.max_batch_tokens
        or _choose_batch_tokens(prepared, placed, replicas[0], samples),
        num_tokenizer_threads=num_tokenizer_threads(args.tokenizer_threads),
        activate=activate,
        split=prepared.fast_tokenizer.split if prepared.fast_tokenizer else None,
        vocabulary=make_vocabulary(model),
        has_token_vectors=has_token_vectors(model, kind),
        sampling_rate=get_sampling_rate(model),
        free_memory=functools.partial(free_memory, devices[0]),
        measure_memory=functools.partial(measure_memory, devices),
        time_network=functools.partial(TorchNetworkTimer, replicas[0]),
        tasks=tuple(prepared.text_encoders),
        prepares_inline=prepared.fast_tokenizer is not None,
    )


def _prepare(name: str, model: BaseModel, kind: ModelKind) -> PreparedModel:
    torch_model = TorchModel(
        model=model,
        layouts={},
        dense_name="scores" if kind in (ModelKind.reranker, ModelKind.classifier) else "sentence_embedding",
        max_active_dims=getattr(model, "max_active_dims", None),
    )
    try:
        return prepare_model(torch_model, kind, get_outputs(model, kind))
    except Exception as exc:  # a model may raise anything on its first inputs
        text = one_line(exc, 400)
        raise StartupError(
            f"model {name!r} was loaded but cannot compute: {type(exc).__name__}: {text}"
        ) from exc


def _has_torch_network(model: BaseModel) -> bool:
    """Return whether torch computes a network; one of another library has no parameters here."""
    networks = [transformer.model for transformer in find_transformers(model)]
    return any(next(network.parameters(), None) is not None for network in networks)


def _encode_samples(prepared: PreparedModel, kind: ModelKind) -> list[Encoded]:
    outputs = get_outputs(prepared.torch_model.model, kind)[:1] or ("dense",)
    options = InputOptions(task=next(iter(prepared.text_encoders)), outputs=outputs)
    return encode_samples(prepared.encode, options, is_pair=kind is ModelKind.reranker)


def _choose_batch_tokens(
    prepared: PreparedModel, placed: ModelOnDevice, replica: TorchBackend, samples: Sequence[Encoded]
) -> int:
    """Return the size of batches. samples: to measure it with; without any it is the device's default."""
    kind, device_kind = placed.kind, get_device_kind(placed.device_name)
    max_tokens = DEFAULT_BATCH_TOKENS[device_kind]
    if samples:
        with preserve_num_threads():
            max_tokens = find_batch_tokens(replica, samples, device_kind=device_kind)
    transformers = find_transformers(prepared.torch_model.model)
    if kind is ModelKind.sparse and transformers:
        bytes_per_token = 4 * int(transformers[0].model.config.vocab_size)
        max_tokens = min(max_tokens, max(256, _MAX_LOGITS_BYTES[device_kind] // bytes_per_token))
    return max_tokens


def _make_replicas(
    torch_model: TorchModel, devices: list[torch.device], cores: SharedCores | None
) -> list[TorchBackend]:
    """Create one backend per device; replicas on the CPU share the weights and the cores."""
    torch_models = [torch_model]
    for device in devices[1:]:
        is_shared = is_cpu(device)
        model = torch_model.model if is_shared else copy.deepcopy(torch_model.model).to(device)
        torch_models.append(replace(torch_model, model=model))
    return [TorchBackend(torch_model, cores=cores) for torch_model in torch_models]


def _describe(placed: ModelOnDevice, files: ModelFiles, prepared: PreparedModel) -> ModelInfo:
    model, kind = placed.model, placed.kind
    is_scoring = kind in (ModelKind.reranker, ModelKind.classifier)
    dimension = getattr(model, "truncate_dim", None) or (
        0 if is_scoring else model.get_embedding_dimension()  # type: ignore[operator]  # of all other kinds
    )
    tokenizer = getattr(model[0], "tokenizer", None)
    return ModelInfo(
        kind=kind,
        capabilities=get_capabilities(model, kind),
        outputs=get_outputs(model, kind),
        embedding_dimension=int(dimension or 0),
        max_tokens=get_max_tokens(model),
        truncation_side=getattr(tokenizer, "truncation_side", None) or "right",
        dtype=placed.dtype.value,
        dtype_reason=placed.dtype.reason,
        device=placed.device_name,
        attention=prepared.attention.value,
        attention_reason=prepared.attention.reason,
        pooling=describe_pooling(model),
        similarity=str(getattr(model, "similarity_fn_name", None) or "cosine"),
        labels=get_labels(model, kind),
        prompts={name: prompt or "" for name, prompt in model.prompts.items()},
        default_prompt_name=model.default_prompt_name,
        tasks=get_tasks(model),
        revision=files.revision,
        source=files.source,
        files_version=files.version,
    )
