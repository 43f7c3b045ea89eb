"""Choose the device, the dtype and the compile options for OpenVINO. Pure rules."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from infinity_emb.backends.external.option_checks import get_only_device_id, refuse_option
from infinity_emb.config.model_options import LoadOptions
from infinity_emb.errors import StartupError
from infinity_emb.hardware import num_usable_cpus
from infinity_emb.types import Device, Dtype

CPU = "CPU"
# A quantized graph defines which of its products are computed with integers; the rest is float32.
_PRECISION_HINTS = {Dtype.float32: "f32", Dtype.float16: "f16", Dtype.bfloat16: "bf16", Dtype.int8: "f32"}
# OpenVINO's names of the capabilities that a device needs; without them it silently uses another format.
_CAPABILITIES = {Dtype.float16: "FP16", Dtype.bfloat16: "BF16"}


def choose_device(args: LoadOptions, available: Sequence[str]) -> str:
    """Return OpenVINO's name of the device: `CPU`, `GPU`, or `GPU.1` if there are several.

    available: all devices that OpenVINO finds; GPUs are Intel's.
    Raises StartupError for a device that is not available, and for several devices.
    """
    gpus = [name for name in available if name.partition(".")[0] == "GPU"]
    if args.device is Device.cpu or (args.device is Device.auto and not gpus):
        return CPU
    if args.device not in (Device.xpu, Device.auto):
        raise refuse_option("device", args.device, args, usable="xpu, cpu or auto")
    number = get_only_device_id(args)
    if number >= len(gpus):
        raise StartupError(
            f"--device {args.device} with number {number} does not exist: OpenVINO sees"
            f" {', '.join(available)}; install the driver of Intel's GPU, or use --device cpu"
        )
    return gpus[number]


def choose_dtype(args: LoadOptions, device: str, capabilities: Collection[str]) -> Dtype:
    """Choose the dtype; the default is half precision on a GPU.

    capabilities: of the device, as OpenVINO reports them.
    Raises StartupError for a dtype that the device does not support.
    """
    if args.dtype is Dtype.auto:
        return Dtype.float16 if device != CPU and "FP16" in capabilities else Dtype.float32
    if args.dtype not in _PRECISION_HINTS:
        raise refuse_option("dtype", args.dtype, args, usable="float32, float16, bfloat16 or int8")
    if _CAPABILITIES.get(args.dtype, "FP32") not in capabilities:
        raise StartupError(
            f"--dtype {args.dtype} is not supported by {device}: OpenVINO reports the capabilities"
            f" {', '.join(sorted(capabilities))}; use --dtype float32"
        )
    return args.dtype


def make_properties(
    args: LoadOptions, device: str, dtype: Dtype, *, num_replicas: int
) -> dict[str, str | int | bool]:
    """Return the compile options of a model.

    num_replicas: number of batches computed concurrently on a CPU; they share the threads.
    Source: https://docs.openvino.ai/2026/openvino-workflow/running-inference/inference-devices-and-modes
    """
    hints: dict[str, str | int | bool] = {"INFERENCE_PRECISION_HINT": _PRECISION_HINTS[dtype]}
    if device != CPU:
        return hints | {"PERFORMANCE_HINT": "LATENCY"}
    num_threads = args.threads or num_usable_cpus()
    return hints | {
        "NUM_STREAMS": min(num_replicas, num_threads),
        "INFERENCE_NUM_THREADS": num_threads,
        # Otherwise each model pins its threads to the same first cores.
        "ENABLE_CPU_PINNING": False,
    }
