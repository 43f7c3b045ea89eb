"""Choose the devices and the dtype that torch computes with, and move data to and from them.

No other module of this folder checks the kind of device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from infinity_emb.config.model_options import ComputeOptions
from infinity_emb.errors import StartupError
from infinity_emb.hardware import (
    MemoryUse,
    free_memory_bytes,
    measure_process_memory,
    num_usable_cpus,
    return_freed_memory,
)
from infinity_emb.types import Device, Dtype

T = TypeVar("T")

# The share of a GPU's memory that graphs may take, and the share that must stay free.
_MAX_GRAPHS_SHARE, _MIN_FREE_SHARE = 0.04, 0.1
# Replicas on a CPU share the weights and divide the cores; with more, Python is the bottleneck.
MAX_CPU_REPLICAS = 8
# The lowest compute capability of GPUs that multiply in this dtype.
_BFLOAT16 = (8, 0)
_QUANTIZED = {Dtype.int8: (7, 5), Dtype.fp8: (8, 9)}


class Choice(NamedTuple):
    """A value and why it was chosen."""

    value: str
    reason: str


def choose_devices(options: ComputeOptions) -> list[torch.device]:
    """Return one device per replica. Raise StartupError for a device that is not available."""
    kind = _choose_device_kind(options.device)
    if kind == "cpu":
        num_cores = options.threads or num_usable_cpus()
        return [torch.device("cpu")] * (len(options.device_id) or min(num_cores, MAX_CPU_REPLICAS))
    if kind == "mps":
        return [torch.device("mps")]
    num_devices = torch.cuda.device_count()
    ids = options.device_id or tuple(range(num_devices))
    missing = [number for number in ids if number >= num_devices]
    if missing:
        raise StartupError(f"--device-id {missing} does not exist: there are {num_devices} devices, from 0")
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


def free_memory(device: torch.device) -> None:
    """Release the device memory that torch caches."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    else:
        return_freed_memory()


def free_bytes(device: torch.device) -> int | None:
    """Return the free memory of a device; None if it is unknown."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_memory_bytes() if device.type == "cpu" else None


def count_bytes_for_graphs(device: torch.device) -> int:
    """Return how much memory captured graphs may take; 0 on a device without graphs or free memory."""
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return max(0, min(int(_MAX_GRAPHS_SHARE * total), int(free - _MIN_FREE_SHARE * total)))


def make_graph_pool() -> tuple[int, int]:
    """Return a memory pool to be shared by graphs that are never replayed at the same time."""
    handle: tuple[int, int] = torch.cuda.graph_pool_handle()
    return handle


def capture_graph(
    compute: Callable[[], T], device: torch.device, pool: tuple[int, int]
) -> tuple[torch.cuda.CUDAGraph, T]:
    """Capture what `compute` launches; return the graph and the result, whose tensors each replay fills.

    Raises what the library raises if the host would wait for the device.
    """
    wait_for(device)
    handle: Any = pool  # torch's type for it is private
    graph = torch.cuda.CUDAGraph()
    # Other threads may use the device meanwhile.
    with torch.cuda.graph(graph, pool=handle, capture_error_mode="thread_local"):
        result = compute()
    return graph, result


def measure_memory(devices: Sequence[torch.device]) -> MemoryUse:
    """Return the memory that torch holds on the devices, its cache included, and their total memory."""
    kind = devices[0].type
    if kind == "cuda":
        used = [torch.cuda.memory_reserved(device) for device in devices]
        limits = [torch.cuda.get_device_properties(device).total_memory for device in devices]
        return MemoryUse(sum(used), sum(limits))
    if kind == "mps":
        return MemoryUse(torch.mps.driver_allocated_memory(), torch.mps.recommended_max_memory())
    return measure_process_memory()


def is_cpu(device: torch.device) -> bool:
    """Return whether the device is the host's CPU, whose replicas share the weights and the cores."""
    return device.type == "cpu"


def count_in_flight(device: torch.device) -> int:
    """Return how many batches may be launched before the first is collected."""
    return 2 if device.type == "cuda" else 1


def set_current(device: torch.device) -> None:
    """Make a GPU the thread's current one."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def wait_for(device: torch.device) -> None:
    """Wait until a device has finished what was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def has_varlen_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether torch's flash kernel may run: on CUDA, in half precision."""
    return device.type == "cuda" and dtype != torch.float32


def has_fused_norm(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether torch's RMS norm saves kernels: on CUDA, where values would be cast to float32."""
    return device.type == "cuda" and dtype != torch.float32


def allocate_staging(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Allocate host memory, pinned for CUDA so that copies are asynchronous.

    It may be freed during the copy: torch reuses it only after the copy has completed.
    """
    return torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")


def copy_to_device(values: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    """Start a copy without waiting for the device; a copy from unpinned memory would wait."""
    host = torch.from_numpy(values)
    if device.type != "cuda":
        return host.to(device)
    return allocate_staging(values.shape, host.dtype, device).copy_(host).to(device, non_blocking=True)


def copy_to_host(values: Tensor) -> Tensor:
    """Start a copy; it is complete once an event recorded after it is."""
    if values.device.type != "cuda":
        return values.cpu()
    host = allocate_staging(values.shape, values.dtype, values.device)
    return host.copy_(values, non_blocking=True)


def record_event(device: torch.device) -> torch.cuda.Event | None:
    """Record an event after everything launched so far; return None if launching computes."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch has no annotation
    event.record(torch.cuda.current_stream(device))  # not the current device's, which may be another
    return event


def choose_dtype(dtype: Dtype, device: torch.device) -> Choice:
    """Choose the dtype of weights and activations. Raise StartupError for one without a fast kernel here.

    int8 and fp8 are only tried: `int8/quantize.py` measures whether they are faster.
    """
    if dtype is Dtype.int16:
        raise StartupError(f"--dtype {dtype} is not supported by torch; use --engine ctranslate2, or float32")
    if dtype in _QUANTIZED:
        _check_quantized(dtype, device)
    if dtype is not Dtype.auto:
        return Choice(dtype.value, "requested")
    if device.type != "cuda":
        return Choice("float32", "the most exact dtype")
    if _has_bfloat16(device):
        return Choice("bfloat16", "this GPU computes it natively")
    return Choice("float16", "this GPU has no bfloat16")


def _has_bfloat16(device: torch.device) -> bool:
    """Return whether this GPU multiplies bfloat16; according to torch, all of AMD's do.

    `torch.cuda.is_bf16_supported` also accepts emulation, and checks the current device only.
    """
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= _BFLOAT16


def choose_full_dtype(dtype: Dtype, device: torch.device) -> Choice:
    """Choose the dtype that a model is loaded in; int8 and fp8 are converted from it. Raise StartupError."""
    chosen = choose_dtype(dtype, device)
    if dtype not in _QUANTIZED:
        return chosen
    # fp8 is scaled in bfloat16 only; every GPU that supports fp8 supports bfloat16.
    return choose_dtype(Dtype.auto, device)


def _check_quantized(dtype: Dtype, device: torch.device) -> None:
    if device.type == "cuda":
        found, needed = torch.cuda.get_device_capability(device), _QUANTIZED[dtype]
        if torch.version.hip is None and found < needed:
            raise StartupError(
                f"--dtype {dtype} needs a GPU of compute capability {_format_capability(needed)} or newer,"
                f" but this one has {_format_capability(found)}; use float16 or auto"
            )
    elif device.type != "cpu":
        raise StartupError(f"--dtype {dtype} has no fast path on {device.type}; use float32, float16 or auto")
    elif dtype is Dtype.fp8:
        raise StartupError("--dtype fp8 has no fast path on CPUs; use int8 or float32")


def _format_capability(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


def list_device_names() -> list[str]:
    """Return the product names of the devices from which `--device auto` chooses."""
    if torch.cuda.is_available():
        return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return ["mps"] if torch.backends.mps.is_available() else []
