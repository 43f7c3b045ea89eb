"""Choose a provider of onnxruntime and its options, and open a session."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnxruntime

from infinity_emb.backends.external.option_checks import refuse_option
from infinity_emb.backends.onnx.tensorrt_profiles import ShapeLimits, make_profile_options
from infinity_emb.backends.out_of_memory import is_out_of_memory
from infinity_emb.config.model_options import LoadOptions
from infinity_emb.errors import DeviceFailed, StartupError, one_line
from infinity_emb.hardware import num_usable_cpus
from infinity_emb.types import Device, Dtype


@dataclass(frozen=True, slots=True)
class Provider:
    """One of onnxruntime's execution providers.

    onnx_name: what onnxruntime calls it.
    wheel: the package that provides it.
    memory: the kind of device memory that its inputs and outputs may use, as onnxruntime calls it.
    """

    name: str
    onnx_name: str
    wheel: str
    memory: str = "cpu"


_PROVIDERS = {
    provider.name: provider
    for provider in (
        Provider("cuda", "CUDAExecutionProvider", "onnxruntime-gpu", "cuda"),
        Provider("tensorrt", "TensorrtExecutionProvider", "onnxruntime-gpu", "cuda"),
        Provider("migraphx", "MIGraphXExecutionProvider", "onnxruntime-migraphx"),
        Provider("rocm", "ROCMExecutionProvider", "onnxruntime-rocm"),
        Provider("coreml", "CoreMLExecutionProvider", "onnxruntime, on macOS"),
        Provider("openvino", "OpenVINOExecutionProvider", "onnxruntime-openvino"),
        Provider("dml", "DmlExecutionProvider", "onnxruntime-directml"),
        Provider("cpu", "CPUExecutionProvider", "onnxruntime"),
    )
}
# The providers for each device, best first. Those that compute in half precision without being told to
# (CoreML, OpenVINO on a GPU, DirectML) and TensorRT, which takes minutes to start, are used only on request.
_PROVIDERS_BY_DEVICE: dict[Device, tuple[str, ...]] = {
    Device.auto: ("cuda", "migraphx", "rocm", "cpu"),
    Device.cpu: ("cpu",),
    Device.cuda: ("cuda", "migraphx", "rocm"),  # builds of torch for ROCm call their devices cuda, too
    Device.mps: ("coreml",),
    Device.tensorrt: ("tensorrt",),
}


def choose_provider(args: LoadOptions) -> Provider:
    """Choose the provider by `--onnx-provider`, else by `--device`.

    Raises StartupError for one that the installed onnxruntime lacks, naming the package that has it.
    """
    available = onnxruntime.get_available_providers()
    if args.onnx_provider != "auto":
        names: Sequence[str] = (args.onnx_provider,)
        asked = f"--onnx-provider {args.onnx_provider}"
    elif args.device in _PROVIDERS_BY_DEVICE:
        names = _PROVIDERS_BY_DEVICE[args.device]
        asked = f"--device {args.device}"
    else:
        raise refuse_option("device", args.device, args, usable="cuda, tensorrt, mps, cpu or auto")
    candidates = [_PROVIDERS[name] for name in names]
    for provider in candidates:
        if provider.onnx_name in available:
            return provider
    wheels = " or ".join(dict.fromkeys(provider.wheel for provider in candidates))
    raise StartupError(
        f"{asked} needs {' or '.join(provider.onnx_name for provider in candidates)}, which onnxruntime"
        f" {onnxruntime.__version__} as installed here does not have ({', '.join(available)}); install"
        f" {wheels} in its place"
    )


def make_provider_options(
    provider: Provider,
    args: LoadOptions,
    dtype: Dtype,
    engine_folder: Path,
    limits: ShapeLimits | None = None,
) -> dict[str, str]:
    """Return the options of the provider.

    dtype: of the computation.
    engine_folder: where TensorRT stores its engines.
    limits: shapes that TensorRT builds an engine for at start; None to build one for each new shape.
    Source: https://onnxruntime.ai/docs/execution-providers
    """
    device_id = str(args.device_id[0] if args.device_id else 0)
    if provider.name == "cuda":
        return _cuda_options(device_id)
    if provider.name == "tensorrt":
        engine_folder.mkdir(parents=True, exist_ok=True)
        return {
            "device_id": device_id,
            "trt_fp16_enable": "1" if dtype is Dtype.float16 else "0",
            "trt_layer_norm_fp32_fallback": "1",  # its sums overflow float16
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(engine_folder),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(engine_folder),
            **(make_profile_options(limits) if limits else {}),
        }
    return {"device_id": device_id} if provider.name in ("migraphx", "rocm", "dml") else {}


def make_session_options(args: LoadOptions) -> onnxruntime.SessionOptions:
    """Set threads and graph optimization from the options."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads or num_usable_cpus()
    options.inter_op_num_threads = 1
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = (
        levels.ORT_DISABLE_ALL if args.onnx_disable_optimize else levels.ORT_ENABLE_ALL
    )
    options.log_severity_level = 3  # errors only; warnings report nodes that stay on the CPU on purpose
    return options


def open_session(
    path: Path, provider: Provider, options: Mapping[str, str], args: LoadOptions
) -> onnxruntime.InferenceSession:
    """Load a graph.

    Raises StartupError if it cannot be loaded, DeviceFailed if the provider did not start or cannot load a
    graph that the CPU provider can, and MemoryError.
    """
    if provider.memory == "cuda":
        with contextlib.suppress(Exception):  # CUDA may be installed elsewhere; then the session finds it
            onnxruntime.preload_dlls()
    try:
        session = onnxruntime.InferenceSession(
            str(path),
            make_session_options(args),
            providers=[(provider.onnx_name, dict(options)), *_list_fallbacks(provider, options)],
            enable_fallback=0,  # else it prints the error and silently tries another provider
        )
    except Exception as exc:  # onnxruntime's exceptions have no common base class
        if is_out_of_memory(exc):
            raise MemoryError(str(exc)) from exc
        reason = one_line(exc, 400)
        message = f"onnxruntime cannot load {path} with {provider.onnx_name}: {reason}"
        raise (DeviceFailed if _can_be_read(path, provider) else StartupError)(message) from exc
    # If libraries for the GPU are missing, onnxruntime logs it and continues on the CPU.
    if session.get_providers()[0] != provider.onnx_name:
        raise DeviceFailed(
            f"{provider.onnx_name} did not start, and onnxruntime would compute on the CPU; check that the"
            f" libraries that {provider.wheel} needs are installed, or use --device cpu"
        )
    return session


def _can_be_read(path: Path, provider: Provider) -> bool:
    """Return true if the CPU provider accepts a graph that another provider refused."""
    cpu = _PROVIDERS["cpu"].onnx_name
    if provider.onnx_name == cpu:
        return False
    try:
        onnxruntime.InferenceSession(str(path), providers=[cpu])
    except Exception:  # noqa: BLE001 - onnxruntime's exceptions have no common base class
        return False
    return True


def _list_fallbacks(provider: Provider, options: Mapping[str, str]) -> list[tuple[str, dict[str, str]]]:
    """Return the providers to fall back to before the CPU."""
    cuda = _PROVIDERS["cuda"].onnx_name
    if provider.name != "tensorrt" or cuda not in onnxruntime.get_available_providers():
        return []
    return [(cuda, _cuda_options(options["device_id"]))]


def _cuda_options(device_id: str) -> dict[str, str]:
    # TF32 keeps 10 bits of each factor, which is less precise than float32.
    return {"device_id": device_id, "use_tf32": "0"}
