"""Compiled layers have the outputs of eager ones, or are not used; nothing is compiled after the start."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from infinity_emb.backends import closeness
from infinity_emb.backends.base import LoadedModel
from infinity_emb.backends.closeness import Scores, compare_texts
from infinity_emb.backends.torch import acceleration, cpu_threads, eager_outputs, layer_compilation
from infinity_emb.backends.torch.backend import TorchBackend
from infinity_emb.backends.torch.compiled_layers import CompiledLayers
from infinity_emb.backends.torch.eager_outputs import compute_entries
from infinity_emb.backends.torch.st_introspection import find_transformers
from infinity_emb.items import Encoded, InputOptions, number_inputs
from tests.support.accelerated_models import get_backend, load_backend, load_folder, make_batch
from tests.support.model_kinds import TEXTS, list_kinds

pytestmark = [pytest.mark.model, pytest.mark.filterwarnings("ignore")]

KINDS = list_kinds()
compile_layers = layer_compilation.compile_layers


class CountingCompiler:
    """Compile to the traced operators themselves, and count."""

    def __init__(self, change: Callable[[Any], Any] = lambda outputs: outputs) -> None:
        self.num_compiled = self.num_runs = 0
        self._change = change

    def __call__(self, graph: Any, inputs: Sequence[Any]) -> Any:
        self.num_compiled += 1

        def run(*args: Any) -> Any:
            self.num_runs += 1
            return self._change(graph(*args))

        return run


@pytest.fixture(autouse=True)
def one_core() -> Iterator[None]:
    with cpu_threads.one_core():
        yield


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let compiled layers seem fast, and read few texts at start."""
    monkeypatch.setattr(layer_compilation, "_measure_gains", lambda *args: {"texts": 1.5})
    monkeypatch.setattr(acceleration, "short_texts", lambda: TEXTS)
    monkeypatch.setattr(acceleration, "passages", lambda: [TEXTS[0] * 2])


def load(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch, compiler: Any) -> LoadedModel:
    """Load with `--compile` and a compiler of the test."""
    monkeypatch.setattr(acceleration, "compile_layers", functools.partial(compile_layers, compiler=compiler))
    return load_folder(KINDS[kind].save(folder), device="cpu", compile=True, max_batch_tokens=512)


def encode(model: LoadedModel, kind: str) -> list[Encoded]:
    outputs = model.info.outputs[:1] or ("dense",)
    return model.encode(number_inputs(KINDS[kind].list_inputs()[0]), InputOptions(outputs=outputs))


def assert_equal(found: Sequence[Any], expected: Sequence[Any], tolerance: float = 2e-6) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert np.abs(np.asarray(one) - np.asarray(other)).max() <= tolerance


@pytest.mark.parametrize(
    ("kind", "num_versions"),
    [("embedder: bert", 1), ("embedder: modernbert", 2), ("embedder: qwen3", 3), ("pooling: cls", 3),
     ("reranker: bert", 3), ("reranker: qwen3", 1)],
)  # fmt: skip
def test_every_batch_runs_the_code_that_was_compiled_at_start(
    kind: str, num_versions: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = CountingCompiler()
    model = load(kind, tmp_path, monkeypatch, compiler)
    backend, batch = get_backend(model), encode(model, kind)
    (transformer,) = find_transformers(backend.torch_model.model)
    num_layers = transformer.model.config.num_hidden_layers
    assert compiler.num_compiled == num_versions
    for size, num_threads in ((1, 1), (2, 2), (3, 1), (len(batch), 2)):
        torch.set_num_threads(num_threads)
        before = compiler.num_runs
        found = compute_entries(backend, batch, size)
        assert compiler.num_runs - before == num_layers * -(-len(batch) // size)
        with without_compiled_layers(backend):
            assert_equal(found, compute_entries(backend, batch, size))
    assert compiler.num_compiled == num_versions


@contextlib.contextmanager
def without_compiled_layers(backend: TorchBackend) -> Iterator[None]:
    """Compute eagerly inside the block."""
    modules: list[Any] = list(backend.torch_model.model.modules())
    calls = [module._compiled_call_impl for module in modules]
    for module in modules:
        module._compiled_call_impl = None
    yield
    for module, call in zip(modules, calls, strict=True):
        module._compiled_call_impl = call


@pytest.mark.slow
def test_vectors_of_inductor_equal_those_of_sentence_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "code"))
    caplog.set_level("INFO", "infinity_emb")
    model = load("embedder: bert", tmp_path, monkeypatch, "inductor")
    assert "compiled 3 layers" in caplog.text
    found = compute_entries(get_backend(model), encode(model, "embedder: bert"), 2)
    path = str(next(tmp_path.rglob("modules.json")).parent)
    reference: Any = SentenceTransformer(path, device="cpu")
    assert_equal(found, list(reference.encode(TEXTS)), 2e-5)


def test_batches_that_no_code_was_made_for_are_computed_without_compiling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = CountingCompiler()
    backend = get_backend(load("embedder: bert", tmp_path, monkeypatch, compiler))
    before = compiler.num_runs, compiler.num_compiled
    network = find_transformers(backend.torch_model.model)[0].model
    with torch.inference_mode():
        network.double()(input_ids=torch.ones(1, 4, dtype=torch.int64))  # not packed
        backend.launch(make_batch(3, 5, 4)).result()  # of another dtype
    assert (compiler.num_runs, compiler.num_compiled) == before


def test_a_copy_of_the_model_is_not_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 on demand copies a model, and the copy must not compute with the weights of the original."""
    compiler = CountingCompiler()
    backend = get_backend(load("embedder: bert", tmp_path, monkeypatch, compiler))
    copied = copy.deepcopy(backend.torch_model.model)
    assert any(module._compiled_call_impl for module in backend.torch_model.model.modules())
    assert not any(module._compiled_call_impl for module in copied.modules())


def fail(graph: Any, inputs: Any) -> Any:
    raise RuntimeError("no C++ compiler was found")


@pytest.mark.parametrize(
    ("kind", "compiler", "reason"),
    [
        ("embedder: bert", fail, "no C++ compiler was found"),
        (
            "embedder: bert",
            CountingCompiler(lambda outputs: [each.flip(-1) for each in outputs]),
            "its output",
        ),
        ("embedder: mpnet", CountingCompiler(), "the model's inputs are not packed"),
    ],
)
def test_layers_that_cannot_be_compiled_or_differ_are_computed_eagerly(
    kind: str,
    compiler: Any,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = load(kind, tmp_path, monkeypatch, compiler)
    [line] = [record.getMessage() for record in caplog.records if "--compile" in record.getMessage()]
    assert line.startswith("--compile has no effect: ")
    assert reason in line
    assert not any(module._compiled_call_impl for module in get_backend(model).torch_model.model.modules())
    plain = load_folder(next(tmp_path.rglob("modules.json")).parent, device="cpu", model_warmup=False)
    batch = encode(model, kind)
    assert_equal(compute_entries(get_backend(model), batch, 4), compute_entries(get_backend(plain), batch, 4))


def compile_in_float32(graph: Any, inputs: Sequence[Any]) -> Any:
    """Round less often than eager: once per layer."""

    def run(*args: Any) -> Any:
        cast = [each.float() if is_half(each) else each for each in args]
        return [output.bfloat16() for output in graph(*cast)]

    return run


def is_half(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("compiler", "is_kept"),
    [
        (compile_in_float32, True),
        (CountingCompiler(lambda outputs: [each + 0.02 * each.flip(-1) for each in outputs]), False),
    ],
)
def test_in_half_precision_layers_may_change_decisions_if_they_are_as_near_to_float32_as_eager(
    compiler: Any,
    is_kept: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = load_backend(tmp_path, "embedder: bert", device="cpu", model_warmup=False)
    backend.torch_model.model.bfloat16()
    batch = make_batch(*range(3, 40))
    objections: list[tuple[bool, str]] = []

    def find_objection(new: Scores, old: Sequence[Scores], reference: Scores | None = None) -> str:
        objections.append((reference is not None, closeness.find_objection(new, old, reference)))
        return objections[-1][1]

    monkeypatch.setattr(eager_outputs, "find_objection", find_objection)
    assert compile_layers(backend, [batch], lambda rows: Scores(compare_texts(rows)), compiler) == is_kept
    [(_, first), (has_reference, second)] = objections
    assert first, "eager batches are the same whatever their size, so that any change of an order counts"
    assert has_reference
    assert bool(second) != is_kept
    assert ("its output" in caplog.text) != is_kept


def test_layers_that_are_not_faster_stay_eager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(layer_compilation, "_measure_gains", lambda *args: {"a text": 1.9, "texts": 0.9})
    model = load("embedder: bert", tmp_path, monkeypatch, CountingCompiler())
    assert "1.90 times as fast for a text, 0.90 times as fast for texts" in caplog.text
    assert not any(module._compiled_call_impl for module in get_backend(model).torch_model.model.modules())


def test_the_speeds_of_both_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    backend = load_backend(tmp_path, "embedder: bert", device="cpu", model_warmup=False)
    monkeypatch.setattr(layer_compilation, "_DEADLINE_S", 0.0)
    layers = CompiledLayers([backend.torch_model.model], CountingCompiler())
    batch = make_batch(3, 5, 8, 13, 21, 34)
    with layers.compiling():
        backend.launch(batch).result()
    gains = layer_compilation._measure_gains(backend, batch, layers)
    assert gains.keys() == {"a short text", "short texts", "passages"}
    assert all(0 < gain < 100 for gain in gains.values())


def test_without_the_option_nothing_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> bool:
        raise AssertionError("compiled")

    monkeypatch.setattr(acceleration, "compile_layers", refuse)
    load_folder(KINDS["embedder: bert"].save(tmp_path), device="cpu", max_batch_tokens=512)
