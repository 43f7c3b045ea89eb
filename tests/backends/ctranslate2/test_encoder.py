"""Everything up to an encoder's creation, for devices that are not here as well."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ctranslate2
import pytest

from infinity_emb.backends.ctranslate2 import encoder as ct2_encoder
from infinity_emb.backends.ctranslate2.encoder import Target, choose_target, num_threads, open_encoder
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.errors import StartupError
from infinity_emb.types import Dtype

FLOATS = {"float32", "int8", "int8_float32"}
HALVES = {"float16", "int8_float16"}


def args(**options: Any) -> EngineArgs:
    return EngineArgs(model_name_or_path="m", engine="ctranslate2", **options)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has so many GPUs, with these compute types."""

    def be(num_gpus: int = 0, *compute_types: set[str]) -> None:
        on_gpus = set().union(*compute_types)
        monkeypatch.setattr(ctranslate2, "get_cuda_device_count", lambda: num_gpus)
        monkeypatch.setattr(
            ctranslate2,
            "get_supported_compute_types",
            lambda device, index=0: on_gpus if device == "cuda" else FLOATS,
        )

    be()
    return be


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, Target("cpu", 0, 1, Dtype.float32, "float32")),
        ({"device": "cpu", "dtype": "float32"}, Target("cpu", 0, 1, Dtype.float32, "float32")),
        ({"dtype": "int8"}, Target("cpu", 0, 1, Dtype.int8, "int8_float32")),
        ({"device_id": (0, 0, 0)}, Target("cpu", 0, 3, Dtype.float32, "float32")),
        ({"device_id": (5,)}, Target("cpu", 0, 1, Dtype.float32, "float32")),
    ],
)
def test_a_cpu_computes_float32_unless_int8_is_asked_for(
    machine: Callable[..., None], options: dict[str, Any], expected: Target
) -> None:
    assert choose_target(args(**options)) == expected


@pytest.mark.parametrize(
    ("options", "compute_types", "expected"),
    [
        ({}, (FLOATS, HALVES), Target("cuda", 0, 1, Dtype.float16, "float16")),
        ({}, (FLOATS,), Target("cuda", 0, 1, Dtype.float32, "float32")),
        ({"device": "cuda", "device_id": (1,)}, (FLOATS,), Target("cuda", 1, 1, Dtype.float32, "float32")),
        ({"dtype": "int8"}, (FLOATS, HALVES), Target("cuda", 0, 1, Dtype.int8, "int8_float16")),
        ({"dtype": "int8"}, ({"int8_bfloat16"},), Target("cuda", 0, 1, Dtype.int8, "int8_bfloat16")),
        ({"dtype": "int8"}, (FLOATS,), Target("cuda", 0, 1, Dtype.int8, "int8_float32")),
        ({"dtype": "bfloat16"}, ({"bfloat16"},), Target("cuda", 0, 1, Dtype.bfloat16, "bfloat16")),
        ({"device": "cpu"}, (FLOATS, HALVES), Target("cpu", 0, 1, Dtype.float32, "float32")),
    ],
)
def test_a_gpu_computes_half_precision_where_it_can(
    machine: Callable[..., None],
    options: dict[str, Any],
    compute_types: tuple[set[str], ...],
    expected: Target,
) -> None:
    machine(2, *compute_types)
    assert choose_target(args(**options)) == expected


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "fp8"])
def test_a_format_that_the_device_does_not_compute_is_refused_with_those_that_it_does(
    machine: Callable[..., None], dtype: str
) -> None:
    with pytest.raises(StartupError, match=f"--dtype {dtype} is not supported .* cpu; use float32, int8$"):
        choose_target(args(dtype=dtype))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda"}, "--device cuda is not available: CTranslate2 .* sees no such device"),
        ({"device": "mps"}, "--device mps is not for --engine ctranslate2; use cuda, cpu or auto"),
        ({"device": "tensorrt"}, "--device tensorrt is not for --engine ctranslate2"),
    ],
)
def test_a_device_that_is_not_here_is_refused(
    machine: Callable[..., None], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(StartupError, match=message):
        choose_target(args(**options))


@pytest.mark.parametrize(
    ("device_id", "message"),
    [
        (
            (0, 1),
            "--device-id has 2 devices.* on one of them; start a server for each, or use --engine torch",
        ),
        ((2,), r"--device-id 2 does not exist: there are 2 devices, from 0"),
    ],
)
def test_a_model_is_on_one_gpu_that_is_here(
    machine: Callable[..., None], device_id: tuple[int, ...], message: str
) -> None:
    machine(2, FLOATS)
    with pytest.raises(StartupError, match=message):
        choose_target(args(device_id=device_id))


def test_what_this_machine_says_of_itself_is_understood() -> None:
    target = choose_target(args(device="cpu"))
    assert target.compute_type in ctranslate2.get_supported_compute_types(target.device)


def test_replicas_divide_the_cores_and_each_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [num_threads(args(threads=5), replicas) for replicas in (1, 2, 8)] == [5, 2, 1]
    monkeypatch.setattr(ct2_encoder, "num_usable_cpus", lambda: 3)
    assert num_threads(args(), 1) == 3


def test_an_encoder_is_opened_as_it_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def make_encoder(*names: Any, **options: Any) -> str:
        given.append((*names, options))
        return "encoder"

    monkeypatch.setattr(ctranslate2, "Encoder", make_encoder)
    target = Target("cuda", 1, 1, Dtype.int8, "int8_float16")
    assert open_encoder(Path("folder"), target, args(threads=3)) == "encoder"
    options = {
        "device_index": 1,
        "compute_type": "int8_float16",
        "inter_threads": 1,
        "intra_threads": 3,
    }
    assert given == [("folder", "cuda", options)]


def test_a_folder_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    target = Target("cpu", 0, 1, Dtype.float32, "float32")
    with pytest.raises(StartupError, match=f"CTranslate2 cannot load {tmp_path} on cpu: Unable to open"):
        open_encoder(tmp_path, target, args())


@pytest.mark.parametrize(
    "message",
    [
        "mkl_malloc: failed to allocate memory",
        "CUDA failed with error out of memory",
        "cuBLAS failed with status CUBLAS_STATUS_ALLOC_FAILED",
        "std::bad_alloc",
    ],
)
def test_lack_of_memory_at_start_is_told_from_other_failures(
    monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    def fail(*names: Any, **options: Any) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(ctranslate2, "Encoder", fail)
    with pytest.raises(MemoryError, match=message):
        open_encoder(Path("folder"), Target("cpu", 0, 1, Dtype.float32, "float32"), args())
