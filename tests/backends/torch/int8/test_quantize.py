"""Models in int8 and fp8: how close they stay, when they are kept, and what is refused with which words."""

from __future__ import annotations

import asyncio
import itertools
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from benchmarks.texts import bundled_model_folder
from infinity_emb import AsyncEmbeddingEngine, EngineArgs
from infinity_emb.backends.accuracy import find_bound
from infinity_emb.backends.sample_texts import load_sample_texts
from infinity_emb.backends.torch.backend import to_full_precision
from infinity_emb.backends.torch.device import choose_dtype, choose_full_dtype
from infinity_emb.backends.torch.int8 import linear as torch_int8
from infinity_emb.backends.torch.int8 import quantize as torch_quantized
from infinity_emb.backends.torch.int8.quantize import compare_answers
from infinity_emb.errors import StartupError
from infinity_emb.types import Dtype, ModelKind
from tests.support.small_models import random_texts, save_small_classifier, save_small_model

pytestmark = pytest.mark.model

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BOUND = find_bound("quantization", "int8")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_model(tmp_path_factory.mktemp("bert"), "bert")


def time_goes(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> None:
    """What is measured: first the full format, then the quantised one."""
    measured = itertools.cycle(seconds)
    monkeypatch.setattr(torch_quantized, "measure_answer_s", lambda model: next(measured))


@pytest.fixture
def _int8_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    time_goes(monkeypatch, 3.0, 2.0)


def load(path: Path, **options: Any) -> AsyncEmbeddingEngine:
    options = {"device": "cpu", "model_warmup": False, "dtype": "int8"} | options
    return AsyncEmbeddingEngine.from_args(EngineArgs(model_name_or_path=str(path), **options))


def embed(engine: AsyncEmbeddingEngine, texts: list[str]) -> npt.NDArray[np.float32]:
    async def run() -> npt.NDArray[np.float32]:
        async with engine:
            return np.array((await engine.embed(texts))[0])

    return asyncio.run(run())


def reference(path: Path, texts: list[str]) -> npt.NDArray[np.float32]:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(path), device="cpu").float().encode(texts, show_progress_bar=False)


@pytest.mark.usefixtures("_int8_is_faster")
def test_int8_of_the_default_model_stays_close_to_sentence_transformers() -> None:
    """On texts that neither smoothing nor the comparison at start has seen."""
    folder = bundled_model_folder()
    engine = load(folder, device_id=(0, 1))
    texts = load_sample_texts()[1::4]
    cosines = (embed(engine, texts) * reference(folder, texts)).sum(axis=1)
    assert cosines.mean() >= 0.999
    assert cosines.min() >= 0.995
    assert (engine.info.dtype, engine.info.attention) == ("int8", "packed")
    assert engine.info.dtype_reason.startswith("measured 1.5x as fast as float32 here, mean cosine 0.99")


@pytest.mark.usefixtures("_int8_is_faster")
@pytest.mark.parametrize(
    "model_type", ["roberta", "distilbert", "albert", "modernbert", "qwen3", "gemma3_text", "mpnet", "t5"]
)
def test_int8_serves_packed_and_padded_architectures(model_type: str, tmp_path: Path) -> None:
    path = save_small_model(tmp_path, model_type)
    engine = load(path)
    assert engine.info.dtype == "int8"
    assert engine.info.attention == ("padded" if model_type in ("mpnet", "t5") else "packed")
    texts = random_texts(20)
    assert (embed(engine, texts) * reference(path, texts)).sum(axis=1).min() > 0.98


@pytest.mark.usefixtures("_int8_is_faster")
@pytest.mark.parametrize("num_labels", [1, 3])
def test_int8_serves_models_that_score(num_labels: int, tmp_path: Path) -> None:
    info = load(save_small_classifier(tmp_path, "bert", num_labels=num_labels)).info
    assert info.dtype == "int8"
    assert re.search(r"scores correlate (0\.9|1\.0)", info.dtype_reason)


def test_int8_that_measures_slower_leaves_the_model_as_it_was(
    bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    time_goes(monkeypatch, 2.0, 3.0)
    engine = load(bert)
    assert (engine.info.dtype, engine.info.dtype_reason) == (
        "float32",
        "int8 was requested, but measured 1.5x slower than float32 here",
    )
    texts = random_texts(20)
    assert np.abs(embed(engine, texts) - reference(bert, texts)).max() <= 2e-5


@pytest.mark.usefixtures("_int8_is_faster")
def test_what_comes_out_as_no_number_is_computed_once_more_in_int8(bert: Path) -> None:
    """The float32 weights are gone by then, so there is nothing more exact to compute it with."""
    loaded: Any = load(bert).slot.model
    torch_model = loaded.replicas[0].torch_model
    torch_model.model[0].model.embeddings.word_embeddings.to(torch.bfloat16)  # as around torchao's layers
    assert to_full_precision(torch_model) is torch_model


def test_int8_is_measured_for_real(bert: Path) -> None:
    assert load(bert).info.dtype in ("int8", "float32")


def test_int8_is_measured_for_classifiers_too(tmp_path: Path) -> None:
    """`predict` took the list of texts that were timed for one pair, so that every classifier was refused."""
    info = load(save_small_classifier(tmp_path, "bert", num_labels=3)).info
    assert info.dtype in ("int8", "float32")


@pytest.mark.usefixtures("_int8_is_faster")
def test_int8_whose_answers_move_too_far_is_refused(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_int8, "_MAX_WEIGHT", 2)
    with pytest.raises(
        StartupError, match=r"--dtype int8 cannot be used: its outputs differ too much .*use --dtype float32"
    ):
        load(bert)


@pytest.mark.parametrize("wrong", [0.0, np.nan, np.inf])
def test_one_answer_that_is_0_or_no_number_is_not_close_however_many_are(wrong: float) -> None:
    """Rows without a length were left out of the mean, so it was 1."""
    before = list(np.random.default_rng(0).normal(size=(400, 8)).astype(np.float32))
    after = [row.copy() for row in before]
    assert BOUND.holds(compare_answers(before, after, ModelKind.embedder))
    after[7] *= np.float32(wrong)
    found = compare_answers(before, after, ModelKind.embedder)
    assert found.mean_cosine is not None
    assert found.mean_cosine > 0.99
    assert not BOUND.holds(found)


def test_answers_that_are_0_in_both_formats_are_the_same() -> None:
    rows = [np.zeros((2, 4), dtype=np.float32), np.ones((3, 4), dtype=np.float32)]
    assert BOUND.holds(compare_answers(rows, rows, ModelKind.embedder))


def test_scores_that_are_no_numbers_are_refused() -> None:
    before = [np.array([1.0, 2.0, 3.0], dtype=np.float32)]
    after = [np.array([1.0, np.nan, 3.0], dtype=np.float32)]
    assert BOUND.holds(compare_answers(before, before, ModelKind.reranker))
    assert not BOUND.holds(compare_answers(before, after, ModelKind.reranker))


def test_fp8_has_no_fast_path_on_a_cpu(bert: Path) -> None:
    with pytest.raises(StartupError, match=r"--dtype fp8 has no fast path on CPUs.*use int8 or float32"):
        load(bert, dtype="fp8")


@pytest.mark.parametrize(
    ("dtype", "capability", "refused"),
    [
        (Dtype.int8, (7, 0), "needs a GPU of compute capability 7.5 or newer, but this one has 7.0"),
        (Dtype.fp8, (8, 6), "needs a GPU of compute capability 8.9 or newer, but this one has 8.6"),
        (Dtype.int8, (7, 5), None),
        (Dtype.fp8, (9, 0), None),
    ],
)
def test_a_gpu_that_does_not_multiply_it_is_refused(
    dtype: Dtype, capability: tuple[int, int], refused: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    if refused is None:
        assert choose_dtype(dtype, CUDA).value == dtype
    else:
        with pytest.raises(StartupError, match=refused):
            choose_dtype(dtype, CUDA)


def test_apple_has_no_path_for_either() -> None:
    for dtype in (Dtype.int8, Dtype.fp8):
        with pytest.raises(StartupError, match=f"--dtype {dtype} has no fast path on mps"):
            choose_dtype(dtype, torch.device("mps"))


def test_bfloat16_is_taken_on_gpus_that_multiply_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch says yes of a T4 too, where it emulates it, and asks the current device, not the one given."""
    capabilities = {0: (7, 5), 1: (8, 0), 2: (9, 0), 3: (7, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capabilities[device.index])
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    chosen = [choose_dtype(Dtype.auto, torch.device("cuda", number)).value for number in capabilities]
    assert chosen == ["float16", "bfloat16", "bfloat16", "float16"]


def test_bfloat16_is_taken_on_every_gpu_of_amd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert choose_dtype(Dtype.auto, CUDA).value == "bfloat16"


def test_a_model_is_loaded_in_the_format_that_it_is_quantised_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert choose_full_dtype(Dtype.int8, CPU).value == "float32"
    assert choose_full_dtype(Dtype.fp8, CUDA).value == "bfloat16"
    assert choose_full_dtype(Dtype.float16, CUDA).value == "float16"


def fake_torchao(quantize_: Callable[..., None]) -> types.ModuleType:
    module = types.ModuleType("torchao")
    module.quantization = types.SimpleNamespace(  # type: ignore[attr-defined]
        quantize_=quantize_,
        PerRow=lambda: "per row",
        Int8DynamicActivationInt8WeightConfig=lambda **options: {"format": "int8"} | options,
        Float8DynamicActivationFloat8WeightConfig=lambda **options: {"format": "fp8"} | options,
    )
    return module


@pytest.mark.parametrize("dtype", [Dtype.int8, Dtype.fp8])
def test_torchao_is_told_to_quantise_the_layers_by_rows_and_can_be_undone(
    dtype: Dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quantize_(layer: nn.Linear, config: object) -> None:
        # Left out, the last one changes settings of torch for the whole process.
        assert config == {"format": dtype.value, "granularity": "per row", "set_inductor_config": False}
        layer.weight = nn.Parameter(torch.zeros(2, 2))

    monkeypatch.setitem(sys.modules, "torchao", fake_torchao(quantize_))
    layers = [nn.Linear(2, 2) for _ in range(3)]
    before = [layer.weight for layer in layers]
    undo = torch_quantized.quantize_with_torchao(layers, dtype)
    assert all(not layer.weight.any() for layer in layers)
    undo()
    assert all(layer.weight is weight for layer, weight in zip(layers, before, strict=True))


def test_what_torchao_refuses_is_one_readable_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def quantize_(layer: nn.Linear, config: object) -> None:
        raise AssertionError("needs\nanother GPU")

    monkeypatch.setitem(sys.modules, "torchao", fake_torchao(quantize_))
    with pytest.raises(StartupError, match=r"fp8 cannot be used: torchao refuses it \(needs another GPU\)"):
        torch_quantized.quantize_with_torchao([nn.Linear(2, 2)], Dtype.fp8)


def test_without_torchao_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(StartupError, match=r"install infinity-emb\[quantization\]"):
        torch_quantized.quantize_with_torchao([nn.Linear(2, 2)], Dtype.int8)


def test_torchao_itself_computes_and_is_undone() -> None:
    """int8 on the CPU, where it is slow and right; fp8 needs the hardware."""
    pytest.importorskip("torchao")
    import torch._inductor.config as compiling

    settings = torch.get_float32_matmul_precision(), compiling.force_fuse_int_mm_with_mul
    layers = [nn.Linear(64, 32)]
    read = torch.randn(20, 64)
    with torch.inference_mode():
        exact = layers[0](read)
        undo = torch_quantized.quantize_with_torchao(layers, Dtype.int8)
        quantized = layers[0](read)
        assert 0 < float((quantized - exact).norm() / exact.norm()) < 0.03
        undo()
        assert torch.equal(layers[0](read), exact)
    assert (torch.get_float32_matmul_precision(), compiling.force_fuse_int_mm_with_mul) == settings
