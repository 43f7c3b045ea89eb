"""What becomes of a model that does not fit into memory."""

from __future__ import annotations

import errno
import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from infinity_emb.backends.out_of_memory import is_out_of_memory
from infinity_emb.backends.registry import load_model
from infinity_emb.backends.torch import load as torch_loading
from infinity_emb.backends.torch.device import free_bytes, measure_memory
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.errors import BackendFailed, ModelTooLarge, StartupError
from infinity_emb.hardware import MemoryUse
from infinity_emb.hub.file_selection import count_weight_bytes
from infinity_emb.hub.resolve import ModelFiles, resolve_model_files
from tests.support.small_models.embedders import save_small_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_model(tmp_path_factory.mktemp("model"), "bert")


def args_of(folder: Path) -> EngineArgs:
    return EngineArgs(model_name_or_path=str(folder), device="cpu", model_warmup=False)


def test_weights_that_are_larger_than_what_is_free_are_not_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux would hand out the memory, and end the process later."""
    size_bytes = count_weight_bytes(folder)
    assert size_bytes == (folder / "model.safetensors").stat().st_size
    monkeypatch.setattr(torch_loading, "free_bytes", lambda _: size_bytes)
    load_model(args_of(folder))
    monkeypatch.setattr(torch_loading, "free_bytes", lambda _: size_bytes - 1)
    monkeypatch.setattr(torch_loading, "_load_on", lambda *_: pytest.fail("nothing is loaded"))
    with pytest.raises(ModelTooLarge, match=r"does not fit into the memory of cpu, where 0 MB are free"):
        load_model(args_of(folder))


def test_where_the_system_does_not_say_what_is_free_it_is_tried(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_loading, "free_bytes", lambda _: None)
    assert load_model(args_of(folder)).info.device == "cpu"


def test_memory_that_runs_out_while_loading_is_given_back_and_said_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[weakref.ref[Any]] = []

    def fail(*_: Any) -> None:
        weights = torch.zeros(1000)
        kept.append(weakref.ref(weights))
        try:
            torch.empty(2**60)
        except RuntimeError as exc:
            raise StartupError("model could not be loaded") from exc

    monkeypatch.setattr(torch_loading, "load_sentence_transformers_model", fail)
    with pytest.raises(ModelTooLarge, match="does not fit"):
        load_model(args_of(folder))
    gc.collect()
    assert kept[0]() is None


def test_a_model_that_fails_for_another_reason_is_not_called_too_large(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise StartupError("model could not be loaded")

    monkeypatch.setattr(torch_loading, "load_sentence_transformers_model", fail)
    with pytest.raises(StartupError) as caught:
        load_model(args_of(folder))
    assert type(caught.value) is StartupError


def _raised(error: Exception, cause: Exception | None) -> Exception:
    try:
        raise error from cause
    except Exception as exc:  # noqa: BLE001 - whatever was given
        return exc


_OF_ONNXRUNTIME = type("RuntimeException", (Exception,), {"__module__": "onnxruntime.capi.state"})


@pytest.mark.parametrize(
    ("error", "cause", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), None, True),
        (MemoryError(), None, True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), None, True),
        (OSError(errno.ENOSPC, "No space left on device"), None, False),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), None, True),
        (StartupError("failed"), torch.OutOfMemoryError("CUDA out of memory"), True),
        (StartupError("failed"), _OF_ONNXRUNTIME("CUDA failure 2: out of memory ; GPU=0"), True),
        (RuntimeError("shapes do not match"), None, False),
        (StartupError("DefaultCPUAllocator: can't allocate memory"), None, False),
        (BackendFailed("the model raises RuntimeError: out of memory"), None, False),
        (ValueError("there is no template named 'out of memory'"), None, False),
        (StartupError("failed"), RuntimeError("other"), False),
    ],
)
def test_it_is_known_what_means_that_memory_is_full(
    error: Exception, cause: Exception | None, expected: bool
) -> None:
    assert is_out_of_memory(_raised(error, cause)) is expected


@pytest.mark.parametrize(
    "text",
    [
        "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate",
        "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you tried to allocate",
        "MPS backend out of memory (MPS allocated: 5.56 GB, max allowed: 6.80 GB). Tried to allocate 768 MB",
        "Invalid buffer size: 19.45 GB",
        "Invalid buffer size: 19.38 GiB",
        "CUDA error: out of memory",
        "HIP out of memory. Tried to allocate 2.00 GiB",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "unable to mmap 438000000 bytes from file </models/model.bin>: Cannot allocate memory (12)",
        "BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 8388608000",
        "Available memory of 5 is smaller than requested bytes of 9",
        "CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc((void**)&p, size);",
        "std::bad_alloc",
        "bad allocation",
        "Exception from src/inference/src/cpp/infer_request.cpp:223: std::bad_alloc",
        "Check 'ptr' failed: Failed to allocate 3145728000 bytes",
        "[GPU] Exceeded max size of memory object allocation: requested 9 bytes, but max size is 5 bytes",
        "[GPU] clEnqueueMapBuffer, error code: -5 CL_OUT_OF_RESOURCES",
        "[GPU] clCreateBuffer, error code: -6 CL_OUT_OF_HOST_MEMORY",
        "[GPU] clEnqueueNDRangeKernel, error code: -4 CL_MEM_OBJECT_ALLOCATION_FAILURE",
        "[CL ext] Can not allocate 3145728000 bytes for USM Device",
        "mkl_malloc: failed to allocate memory",
        "failed to allocated memory",
        "CUDA failed with error out of memory",
        "cuBLAS failed with status CUBLAS_STATUS_ALLOC_FAILED",
    ],
)
def test_what_every_library_says_of_full_memory_is_known(text: str) -> None:
    """Each engine knew its own library's words, and torch's own missed those of Metal."""
    assert is_out_of_memory(RuntimeError(text))
    assert is_out_of_memory(_OF_ONNXRUNTIME(f"[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : {text}"))


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: an illegal memory access was encountered",
        "The kernel reads out of memory bounds",
        "out of resource: shared memory, Required: 131072, Hardware limit: 101376",
        "[GPU] Can't allocate memory for dynamic layout",
        "Can't allocate registers for a snippet: not enough registers",
        "Failed to allocate required number of vector registers",
        "Cannot allocate memory for incompatible descriptors.",
        "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Unexpected input data type",
        "No position encodings are defined for positions >= 512",
        "mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)",
    ],
)
def test_what_libraries_say_of_something_else_is_no_lack_of_memory(text: str) -> None:
    """Smaller batches would not help, and hide what was wrong."""
    assert not is_out_of_memory(RuntimeError(text))


def test_what_is_free_of_the_cpus_memory_is_known_on_linux() -> None:
    free = free_bytes(CPU)
    assert (free is not None) is Path("/proc/meminfo").exists()
    assert free is None or 0 < free < 2**50


def test_one_model_is_loaded_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers changes the number format that torch takes by default, for all threads."""
    num_loading, most = 0, 0

    def load(*_: Any) -> None:
        nonlocal num_loading, most
        num_loading += 1
        most = max(most, num_loading)
        time.sleep(0.02)
        num_loading -= 1

    monkeypatch.setattr(torch_loading, "_load_on", load)
    given = args_of(folder), resolve_model_files(str(folder))
    threads = [threading.Thread(target=torch_loading.load_model, args=given) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_a_load_waits_for_another_one_no_longer_than_it_may_take(tmp_path: Path) -> None:
    files = ModelFiles(tmp_path, "folder", None)

    def load(timeout_s: int) -> Any:
        args = EngineArgs(load_timeout_s=timeout_s).load
        return torch_loading.load_within_memory(args, files, CPU, load_another)

    def load_another() -> Any:
        with ThreadPoolExecutor(1) as threads:
            return threads.submit(load, 1).result()

    with pytest.raises(TimeoutError, match="another model has been loading for over 1 s"):
        load(0)


def test_the_memory_of_all_gpus_of_a_model_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    reserved, totals = {0: 3, 1: 4}, {0: 100, 1: 200}
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved[device.index])
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=totals[device.index])
    )
    devices = [torch.device("cuda", number) for number in totals]
    assert measure_memory(devices) == MemoryUse(7, 300)
    assert measure_memory([torch.device("cpu")]).used_bytes > 0
