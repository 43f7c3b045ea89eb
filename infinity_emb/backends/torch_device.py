"""Which devices torch computes on, and in which number format. Knows nothing of models."""

from __future__ import annotations

import errno
import re
from typing import NamedTuple

import torch

from infinity_emb.config import EngineArgs
from infinity_emb.errors import ServingError, StartupError
from infinity_emb.hardware import free_memory_bytes, num_usable_cpus, return_freed_memory
from infinity_emb.primitives import Device, Dtype

# Replicas on a CPU share the weights and divide the cores; more would wait for Python instead.
MAX_CPU_REPLICAS = 8
# What allocators say, of torch and of every library that computes a network for it: few have a class for it.
# No wider than that: OpenVINO lacks registers, or "can't allocate memory for dynamic layout", and has memory.
_OUT_OF_MEMORY = re.compile(
    r"(?<![a-z])out[ _]of[ _]((host|device)[ _])?memory\b(?! bounds)"  # torch and onnxruntime on GPUs, OpenCL
    r"|DefaultCPUAllocator: (can't allocate|not enough) memory"  # torch on a CPU
    r"|invalid buffer size: [\d.]+ [KMGT]i?B"  # torch on Metal: larger than it gives at once
    r"|available memory of \d+ is smaller"  # onnxruntime
    r"|failed to allocated? (memory|\d+ bytes)|\bcan ?not allocate \d+ bytes"  # all but torch
    r"|exceeded max size of memory|CL_OUT_OF_RESOURCES"  # OpenVINO on a GPU
    r"|ALLOC_FAILED|ALLOCATION_FAIL|cudaErrorMemoryAllocation"  # cuBLAS, cuDNN, OpenCL, CUDA
    r"|\bbad[_ ]?alloc(ation)?\b"  # C++, on Linux and on Windows
    r"|cannot allocate memory \((os error )?12\)",  # mapping a file
    re.IGNORECASE,
)
# Compute capability from which on a GPU multiplies it.
_BFLOAT16 = (8, 0)
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


def is_out_of_memory(exc: BaseException) -> bool:
    """Whether a device's memory is full, by what was raised or by what that was raised from.

    It may come from torch, onnxruntime, OpenVINO or CTranslate2, while a model is loaded or a batch computed.
    """
    if isinstance(exc, (torch.OutOfMemoryError, MemoryError)) or _says_so(exc):
        return True
    came_from = exc.__cause__ or exc.__context__
    return came_from is not None and is_out_of_memory(came_from)


def _says_so(exc: BaseException) -> bool:
    if isinstance(exc, OSError):
        return exc.errno == errno.ENOMEM
    # onnxruntime's classes have no base of their own. Ours quote what others said, and those are asked.
    is_of_a_library = isinstance(exc, RuntimeError) or type(exc).__module__.startswith("onnxruntime.")
    return is_of_a_library and not isinstance(exc, ServingError) and bool(_OUT_OF_MEMORY.search(str(exc)))


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
    if dtype is Dtype.int16:
        raise StartupError(
            f"--dtype {dtype} is not what torch computes; use --engine ctranslate2, or float32"
        )
    if dtype in _QUANTIZED:
        _check_quantized(dtype, device)
    if dtype is not Dtype.auto:
        return Choice(dtype.value, "asked for")
    if device.type != "cuda":
        return Choice("float32", f"exact, and usually the fastest on {device.type}")
    if _has_bfloat16(device):
        return Choice("bfloat16", "this GPU computes it natively")
    return Choice("float16", "this GPU has no bfloat16")


def _has_bfloat16(device: torch.device) -> bool:
    """Whether this GPU multiplies it. AMD's all do, torch says; their capabilities are other numbers.

    Not `torch.cuda.is_bf16_supported`: that counts emulation, and asks whichever device is the current one.
    """
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= _BFLOAT16


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
