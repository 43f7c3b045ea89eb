"""Everything up to a graph's compiling, for devices that are not here as well."""

from __future__ import annotations

from typing import Any

import pytest

from infinity_emb.backends.openvino.device import choose_device, choose_dtype, make_properties
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.errors import StartupError
from infinity_emb.hardware import num_usable_cpus
from infinity_emb.types import Dtype

ONE_GPU = ["CPU", "GPU"]
TWO_GPUS = ["CPU", "GPU.0", "GPU.1", "NPU"]


def args(**options: Any) -> EngineArgs:
    return EngineArgs(model_name_or_path="m", engine="openvino", **options)


@pytest.mark.parametrize(
    ("options", "available", "expected"),
    [
        ({}, ["CPU"], "CPU"),
        ({}, ["CPU", "NPU"], "CPU"),
        ({}, ONE_GPU, "GPU"),
        ({}, TWO_GPUS, "GPU.0"),
        ({"device": "cpu"}, TWO_GPUS, "CPU"),
        ({"device": "cpu", "device_id": (0, 1)}, ["CPU"], "CPU"),
        ({"device_id": (0, 1)}, ["CPU"], "CPU"),
        ({"device": "xpu"}, ONE_GPU, "GPU"),
        ({"device": "xpu", "device_id": (1,)}, TWO_GPUS, "GPU.1"),
    ],
)
def test_a_gpu_of_intel_goes_before_the_cpu(
    options: dict[str, Any], available: list[str], expected: str
) -> None:
    assert choose_device(args(**options), available) == expected


@pytest.mark.parametrize(
    ("options", "available", "message"),
    [
        ({"device": "xpu"}, ["CPU", "NPU"], r"--device xpu .* OpenVINO sees CPU, NPU; install the driver"),
        ({"device": "xpu", "device_id": (1,)}, ONE_GPU, "number 1 does not exist: OpenVINO sees CPU, GPU;"),
        ({"device": "xpu", "device_id": (0, 1)}, TWO_GPUS, "--device-id has 2 devices.* on one of them"),
        ({"device": "cuda"}, ONE_GPU, "--device cuda is not for --engine openvino; use xpu, cpu or auto"),
        ({"device": "mps"}, ["CPU"], "--device mps is not for --engine openvino"),
    ],
)
def test_a_device_that_is_not_here_is_refused_with_those_that_are(
    options: dict[str, Any], available: list[str], message: str
) -> None:
    with pytest.raises(StartupError, match=message):
        choose_device(args(**options), available)


@pytest.mark.parametrize(
    ("dtype", "device", "capabilities", "expected"),
    [
        ("auto", "CPU", {"FP32", "BF16", "FP16"}, Dtype.float32),
        ("auto", "GPU", {"FP32", "FP16"}, Dtype.float16),
        ("auto", "GPU", {"FP32"}, Dtype.float32),
        ("float32", "GPU", {"FP32", "FP16"}, Dtype.float32),
        ("bfloat16", "CPU", {"FP32", "BF16"}, Dtype.bfloat16),
        ("int8", "CPU", {"FP32"}, Dtype.int8),
    ],
)
def test_the_cpu_is_exact_unless_asked_otherwise(
    dtype: str, device: str, capabilities: set[str], expected: Dtype
) -> None:
    assert choose_dtype(args(dtype=dtype), device, capabilities) is expected


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        ("float16", "--dtype float16 .* by CPU: OpenVINO reports the capabilities BF16, FP32, INT8;"),
        ("fp8", "--dtype fp8 is not for --engine openvino; use float32, float16, bfloat16 or int8"),
    ],
)
def test_a_format_that_the_device_does_not_compute_is_refused(dtype: str, message: str) -> None:
    """OpenVINO would compute another one without a word."""
    with pytest.raises(StartupError, match=message):
        choose_dtype(args(dtype=dtype), "CPU", ["FP32", "INT8", "BF16"])


@pytest.mark.parametrize(
    ("dtype", "hint"),
    [(Dtype.float32, "f32"), (Dtype.float16, "f16"), (Dtype.bfloat16, "bf16"), (Dtype.int8, "f32")],
)
@pytest.mark.parametrize("device", ["CPU", "GPU.1"])
def test_the_number_format_is_never_left_to_the_device(device: str, dtype: Dtype, hint: str) -> None:
    assert make_properties(args(), device, dtype, num_replicas=1)["INFERENCE_PRECISION_HINT"] == hint


@pytest.mark.parametrize(
    ("options", "num_replicas", "num_threads", "num_streams"),
    [
        ({}, 1, num_usable_cpus(), 1),
        ({"threads": 6}, 1, 6, 1),
        ({"threads": 6}, 2, 6, 2),
        ({"threads": 1}, 2, 1, 1),
    ],
)
def test_replicas_divide_the_threads_that_may_be_used(
    options: dict[str, Any], num_replicas: int, num_threads: int, num_streams: int
) -> None:
    told = make_properties(args(**options), "CPU", Dtype.float32, num_replicas=num_replicas)
    assert (told["INFERENCE_NUM_THREADS"], told["NUM_STREAMS"]) == (num_threads, num_streams)
    assert told["ENABLE_CPU_PINNING"] is False
    assert "NUM_STREAMS" not in make_properties(args(**options), "GPU", Dtype.float32, num_replicas=1)
