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
# Compute capability from which on a GPU multiplies it.
_QUANTIZED = {Dtype.int8: (7, 5), Dtype.fp8: (8, 9)}


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
    if device in (Device.tensorrt, Device.xla, Device.xpu):
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
    """The number format of weights and activations. Raises StartupError for one without a fast path here.

    int8 and fp8 are what to try: `torch_quantized.py` measures whether they are worth it.
    """
    if dtype in _QUANTIZED:
        _check_quantized(dtype, device)
    if dtype is not Dtype.auto:
        return Choice(dtype.value, "asked for")
    if device.type != "cuda":
        return Choice("float32", f"exact, and usually the fastest on {device.type}")
    if torch.cuda.is_bf16_supported():
        return Choice("bfloat16", "this GPU computes it natively")
    return Choice("float16", "this GPU has no bfloat16")


def choose_full_dtype(dtype: Dtype, device: torch.device) -> Choice:
    """The format that a model is loaded in: what `choose_dtype` says, or what int8 and fp8 are made from.

    Raises StartupError.
    """
    chosen = choose_dtype(dtype, device)
    if dtype not in _QUANTIZED:
        return chosen
    # Rows of fp8 are scaled in bfloat16 only; every GPU that has the one has the other.
    return choose_dtype(Dtype.auto, device)


def _check_quantized(dtype: Dtype, device: torch.device) -> None:
    if device.type == "cuda":
        found, needed = torch.cuda.get_device_capability(device), _QUANTIZED[dtype]
        if torch.version.hip is None and found < needed:
            raise StartupError(
                f"--dtype {dtype} needs a GPU of compute capability {_dotted(needed)} or newer and this one"
                f" has {_dotted(found)}; use float16 or auto"
            )
    elif device.type != "cpu":
        raise StartupError(f"--dtype {dtype} has no fast path on {device.type}; use float32, float16 or auto")
    elif dtype is Dtype.fp8:
        raise StartupError("--dtype fp8 has no fast path on CPUs, none multiplies it; use int8 or float32")


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


def device_names() -> list[str]:
    """What the makers call the devices that `--device auto` would choose among."""
    if torch.cuda.is_available():
        return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return ["mps"] if torch.backends.mps.is_available() else []
