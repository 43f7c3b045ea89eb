"""Choose device, number format and threads of a CTranslate2 encoder, and open it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import ctranslate2

from infinity_emb.backends.external.option_checks import get_only_device_id, refuse_option
from infinity_emb.backends.out_of_memory import is_out_of_memory
from infinity_emb.config.model_options import LoadOptions
from infinity_emb.errors import StartupError, one_line
from infinity_emb.hardware import num_usable_cpus
from infinity_emb.types import Device, Dtype

# CTranslate2's names, best first. For int8 the second part is the format of everything but the products.
_COMPUTE_TYPES: dict[Dtype, tuple[str, ...]] = {
    Dtype.float32: ("float32",),
    Dtype.float16: ("float16",),
    Dtype.bfloat16: ("bfloat16",),
    Dtype.int16: ("int16",),
    Dtype.int8: ("int8_float16", "int8_float32", "int8_bfloat16"),
}


class Target(NamedTuple):
    """Device and dtype of an encoder.

    device: `cpu` or `cuda`.
    device_index: which of the GPUs; 0 for a CPU.
    num_replicas: number of batches computed concurrently; on a CPU they share the weights.
    compute_type: CTranslate2's name for `dtype`.
    """

    device: str
    device_index: int
    num_replicas: int
    dtype: Dtype
    compute_type: str


def choose_target(args: LoadOptions) -> Target:
    """Choose device and dtype by `--device`, `--device-id` and `--dtype`.

    Raises StartupError for what CTranslate2 or this machine does not have.
    """
    device = _choose_device(args)
    if device == "cpu":
        return Target(device, 0, len(args.device_id) or 1, *_choose_format(args, device, 0))
    number = get_only_device_id(args)
    num_devices = ctranslate2.get_cuda_device_count()
    if number >= num_devices:
        raise StartupError(f"--device-id {number} does not exist: there are {num_devices} devices, from 0")
    return Target(device, number, 1, *_choose_format(args, device, number))


def _choose_device(args: LoadOptions) -> str:
    if args.device not in (Device.auto, Device.cpu, Device.cuda):
        raise refuse_option("device", args.device, args, usable="cuda, cpu or auto")
    has_cuda = ctranslate2.get_cuda_device_count() > 0
    if args.device is Device.cuda and not has_cuda:
        raise StartupError(
            f"--device cuda is not available: CTranslate2 {ctranslate2.__version__} sees no such device;"
            " check the driver, or use --device cpu"
        )
    return "cuda" if has_cuda and args.device is not Device.cpu else "cpu"


def _choose_format(args: LoadOptions, device: str, index: int) -> tuple[Dtype, str]:
    """Return the dtype and its name in CTranslate2, which depends on the device."""
    supported = ctranslate2.get_supported_compute_types(device, index)
    if args.dtype is Dtype.auto:
        candidates = (Dtype.float16, Dtype.float32) if device == "cuda" else (Dtype.float32,)
    else:
        candidates = (args.dtype,)
    for dtype in candidates:
        for compute_type in _COMPUTE_TYPES.get(dtype, ()):
            if compute_type in supported:
                return dtype, compute_type
    available = [dtype for dtype, names in _COMPUTE_TYPES.items() if supported.intersection(names)]
    raise StartupError(
        f"--dtype {args.dtype} is not supported by CTranslate2 {ctranslate2.__version__} on this {device};"
        f" use {', '.join(map(str, available))}"
    )


def num_threads(args: LoadOptions, num_replicas: int) -> int:
    """Return the threads per batch. CTranslate2 fixes them at start, so replicas divide the cores evenly."""
    return max(1, (args.threads or num_usable_cpus()) // num_replicas)


def open_encoder(folder: Path, target: Target, args: LoadOptions) -> ctranslate2.Encoder:
    """Load a converted network.

    Raises StartupError if it cannot be loaded, and MemoryError.
    """
    try:
        return ctranslate2.Encoder(
            str(folder),
            target.device,
            device_index=target.device_index,
            compute_type=target.compute_type,
            inter_threads=target.num_replicas,
            intra_threads=num_threads(args, target.num_replicas),
        )
    except (RuntimeError, ValueError) as exc:
        if is_out_of_memory(exc):
            raise MemoryError(str(exc)) from exc
        reason = one_line(exc, 400)
        raise StartupError(f"CTranslate2 cannot load {folder} on {target.device}: {reason}") from exc
