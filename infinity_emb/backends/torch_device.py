"""Which devices torch computes on, and in which number format. Knows nothing of models."""

from __future__ import annotations

from typing import NamedTuple

import torch

from infinity_emb.config import EngineArgs
from infinity_emb.errors import StartupError
from infinity_emb.hardware import free_memory_bytes, num_usable_cpus, return_freed_memory
from infinity_emb.primitives import Device, Dtype

# Replicas on a CPU share the weights and divide the cores; more would wait for Python instead.
MAX_CPU_REPLICAS = 8


class Choice(NamedTuple):
    """A value and why it was chosen."""

    value: str
    reason: str


def choose_devices(args: EngineArgs) -> list[torch.device]:
    """One device per replica. Raises StartupError for a device that is not here."""
    kind = _choose_device_kind(args.device)
    if kind == "cpu":
        num_cores = args.threads or num_usable_cpus()
        return [torch.device("cpu")] * (len(args.device_id) or min(num_cores, MAX_CPU_REPLICAS))
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
    return str(device)


def is_out_of_memory(exc: BaseException | None) -> bool:
    """Whether a device's memory is full, by what was raised or by what that was raised from."""
    if exc is None:
        return False
    # torch has no class for a CPU, only this.
    says_so = isinstance(exc, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(exc)
    is_so = isinstance(exc, (torch.OutOfMemoryError, MemoryError))
    return is_so or says_so or is_out_of_memory(exc.__cause__ or exc.__context__)


def free_memory(device: torch.device) -> None:
    """Give back what torch keeps of a device's memory for later."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    else:
        return_freed_memory()


def free_bytes(device: torch.device) -> int | None:
    """Memory that a model could still have; None where that is not known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_memory_bytes() if device.type == "cpu" else None


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
