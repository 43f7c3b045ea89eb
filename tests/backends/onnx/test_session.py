"""Everything up to a session's creation, for providers that are not here as well."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest

from infinity_emb.backends.onnx import session as onnx_session
from infinity_emb.backends.onnx.session import (
    choose_provider,
    make_provider_options,
    make_session_options,
    open_session,
)
from infinity_emb.backends.onnx.tensorrt_profiles import ShapeLimits
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.config.options import get_option
from infinity_emb.errors import DeviceFailed, StartupError
from infinity_emb.hardware import num_usable_cpus
from infinity_emb.types import Dtype

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
ROCM, MIGRAPHX = "ROCMExecutionProvider", "MIGraphXExecutionProvider"
COREML, OPENVINO, DIRECTML = "CoreMLExecutionProvider", "OpenVINOExecutionProvider", "DmlExecutionProvider"


def args(**options: Any) -> EngineArgs:
    return EngineArgs(model_name_or_path="m", engine="onnx", **options)


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the installed onnxruntime has; tests change it."""
    names = [CPU]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    return names


@pytest.mark.parametrize(
    ("options", "others", "expected"),
    [
        ({}, [], CPU),
        ({}, [TENSORRT, CUDA], CUDA),
        ({}, [MIGRAPHX, ROCM], MIGRAPHX),
        ({}, [ROCM], ROCM),
        ({}, [COREML], CPU),
        ({}, [OPENVINO], CPU),
        ({}, [DIRECTML], CPU),
        ({"device": "cpu"}, [CUDA], CPU),
        ({"device": "cuda"}, [CUDA], CUDA),
        ({"device": "cuda"}, [ROCM], ROCM),
        ({"device": "tensorrt"}, [TENSORRT, CUDA], TENSORRT),
        ({"device": "mps"}, [COREML], COREML),
        ({"onnx_provider": "openvino"}, [OPENVINO], OPENVINO),
        ({"onnx_provider": "dml", "device": "cuda"}, [DIRECTML, CUDA], DIRECTML),
        ({"onnx_provider": "cpu", "device": "cuda"}, [CUDA], CPU),
    ],
)
def test_the_provider_follows_the_options_and_what_is_installed(
    offered: list[str], options: dict[str, Any], others: list[str], expected: str
) -> None:
    offered[:0] = others
    assert choose_provider(args(**options)).onnx_name == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda"}, "--device cuda needs CUDA.* install onnxruntime-gpu or onnxruntime-migraphx"),
        ({"device": "tensorrt"}, "--device tensorrt needs Tensorrt.* install onnxruntime-gpu in its place"),
        ({"device": "mps"}, "--device mps needs CoreML.* install onnxruntime, on macOS"),
        ({"onnx_provider": "openvino"}, "--onnx-provider openvino needs .* install onnxruntime-openvino"),
        ({"onnx_provider": "dml"}, "--onnx-provider dml needs .* install onnxruntime-directml"),
        ({"onnx_provider": "rocm"}, "--onnx-provider rocm needs ROCM.* install onnxruntime-rocm"),
        ({"device": "xla"}, "--device xla is not for --engine optimum; use cuda, tensorrt"),
    ],
)
def test_a_provider_that_is_not_installed_is_refused_with_its_package(
    offered: list[str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(StartupError, match=message):
        choose_provider(args(**options))


def test_every_provider_that_an_option_names_is_known() -> None:
    choices = get_option(EngineArgs, "onnx_provider").choices
    assert set(choices) == {"auto", *onnx_session._PROVIDERS}


def options_of(
    offered: list[str], provider: str, dtype: Dtype, folder: Path = Path("cache"), **options: Any
) -> dict[str, str]:
    names = {each.name: each.onnx_name for each in onnx_session._PROVIDERS.values()}
    offered.append(names[provider])
    given = args(onnx_provider=provider, **options)
    return make_provider_options(choose_provider(given), given, dtype, folder)


def test_cuda_computes_float32_in_float32(offered: list[str]) -> None:
    """TF32, its default, is not."""
    told = options_of(offered, "cuda", Dtype.float32, device_id=(1,))
    assert told == {"device_id": "1", "use_tf32": "0"}


@pytest.mark.parametrize(("dtype", "is_half"), [(Dtype.float16, "1"), (Dtype.float32, "0")])
def test_tensorrt_keeps_its_engines_and_halves_where_asked(
    offered: list[str], tmp_path: Path, dtype: Dtype, is_half: str
) -> None:
    told = options_of(offered, "tensorrt", dtype, tmp_path / "a" / "b")
    assert told["device_id"] == "0"
    assert told["trt_fp16_enable"] == is_half
    assert told["trt_engine_cache_enable"] == "1"
    assert Path(told["trt_engine_cache_path"]) == tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b").is_dir()


def test_tensorrt_builds_one_engine_for_all_shapes(offered: list[str], tmp_path: Path) -> None:
    """It would build another one while serving, for minutes, whenever a batch has a new shape."""
    offered.insert(0, TENSORRT)
    given = args(device="tensorrt")
    told = make_provider_options(choose_provider(given), given, Dtype.float16, tmp_path, ShapeLimits(64, 512))
    shapes = {name: told[f"trt_profile_{name}_shapes"].split(",") for name in ("min", "opt", "max")}
    assert [shapes[name][0] for name in shapes] == ["input_ids:1x1", "input_ids:64x128", "input_ids:64x512"]
    assert {len(each) for each in shapes.values()} == {4}
    without = make_provider_options(choose_provider(given), given, Dtype.float16, tmp_path)
    assert told.items() > without.items()
    assert not [name for name in without if "profile" in name]


@pytest.mark.parametrize(("provider", "told"), [("cpu", {}), ("openvino", {}), ("rocm", {"device_id": "0"})])
def test_others_are_told_their_device_at_most(
    offered: list[str], provider: str, told: dict[str, str]
) -> None:
    assert options_of(offered, provider, Dtype.float32) == told


def test_threads_and_optimisation_are_as_the_options_say() -> None:
    levels = onnxruntime.GraphOptimizationLevel
    assert make_session_options(args()).intra_op_num_threads == num_usable_cpus()
    assert make_session_options(args(threads=3)).intra_op_num_threads == 3
    assert make_session_options(args()).graph_optimization_level == levels.ORT_ENABLE_ALL
    plain = make_session_options(args(onnx_disable_optimize=True))
    assert plain.graph_optimization_level == levels.ORT_DISABLE_ALL


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "model.onnx"
    broken.write_bytes(b"no graph")
    given = args(device="cpu")
    with pytest.raises(StartupError, match=r"cannot load .*model.onnx with CPUExecutionProvider"):
        open_session(broken, choose_provider(given), {}, given)


def test_a_node_that_tensorrt_cannot_compute_stays_on_the_gpu(
    monkeypatch: pytest.MonkeyPatch, offered: list[str], tmp_path: Path
) -> None:
    """onnxruntime gives it to the next provider, which would be the CPU."""
    opened: list[Any] = []

    def open_session_of(path: str, options: Any, providers: Any, **others: Any) -> Any:
        opened.append(providers)
        return SimpleNamespace(get_providers=lambda: [name for name, _ in providers])

    monkeypatch.setattr(onnxruntime, "InferenceSession", open_session_of)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    offered[:0] = [TENSORRT, CUDA]
    given = args(device="tensorrt", device_id=(3,))
    provider = choose_provider(given)
    told = make_provider_options(provider, given, Dtype.float16, tmp_path)
    open_session(Path("model.onnx"), provider, told, given)
    offered.remove(CUDA)
    open_session(Path("model.onnx"), provider, told, given)
    assert opened == [
        [(TENSORRT, told), (CUDA, {"device_id": "3", "use_tf32": "0"})],
        [(TENSORRT, told)],
    ]


@pytest.mark.parametrize(("is_damaged", "error"), [(True, StartupError), (False, DeviceFailed)])
def test_a_device_that_fails_is_told_from_a_damaged_file(
    monkeypatch: pytest.MonkeyPatch, offered: list[str], is_damaged: bool, error: type[Exception]
) -> None:
    """A file that is damaged is made again; there is nothing wrong with one that the CPU takes."""

    def start(path: str, *given: Any, providers: list[Any], **options: Any) -> Any:
        if is_damaged or providers != [CPU]:
            raise RuntimeError("no CUDA-capable device is detected")

    monkeypatch.setattr(onnxruntime, "InferenceSession", start)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    offered.insert(0, CUDA)
    given = args(device="cuda")
    with pytest.raises(StartupError, match=r"onnxruntime cannot load model\.onnx with CUDA") as caught:
        open_session(Path("model.onnx"), choose_provider(given), {"device_id": "0"}, given)
    assert caught.type is error


def test_lack_of_memory_at_start_is_told_from_a_graph_that_cannot_be_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A model that is too large may fit where another one is unloaded."""

    def fail(*given: Any, **options: Any) -> None:
        raise RuntimeError("[ONNXRuntimeError] : 6 : CUDA failure 2: out of memory ; GPU=0")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    given = args(device="cpu")
    with pytest.raises(MemoryError, match="CUDA failure 2"):
        open_session(Path("model.onnx"), choose_provider(given), {}, given)


def test_a_provider_that_gives_way_to_the_cpu_is_an_error(
    monkeypatch: pytest.MonkeyPatch, offered: list[str]
) -> None:
    """onnxruntime logs that CUDA's libraries are missing, and goes on ten times slower."""
    opened: list[Any] = []

    def open_on_the_cpu(path: str, options: Any, providers: Any, enable_fallback: int) -> Any:
        assert not enable_fallback
        opened.append(providers)
        return SimpleNamespace(get_providers=lambda: [CPU])

    monkeypatch.setattr(onnxruntime, "InferenceSession", open_on_the_cpu)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    offered.insert(0, CUDA)
    given = args(device="cuda")
    provider = choose_provider(given)
    with pytest.raises(StartupError, match=r"CUDAExecutionProvider did not start.*onnxruntime-gpu"):
        open_session(Path("model.onnx"), provider, {"device_id": "0"}, given)
    assert opened == [[(CUDA, {"device_id": "0"})]]
