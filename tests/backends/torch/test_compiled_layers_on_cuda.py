"""Compiled layers on the emulated CUDA device: all but the code that Inductor would write for a GPU.

torch.compile traces the layers with the branches and kernels for CUDA; a compiler of the test runs the trace.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu import emulated_graphs
from benchmarks.gpu.emulated_cuda import emulate_cuda, record
from infinity_emb.backends.torch import acceleration, cpu_threads, graph_capture, layer_compilation
from infinity_emb.backends.torch.backend import TorchBackend
from infinity_emb.backends.torch.graphs import GraphShape
from tests.backends.torch.test_layer_compilation import CountingCompiler
from tests.support.accelerated_models import load_backend, make_batch
from tests.support.model_kinds import TEXTS, list_kinds

pytestmark = [pytest.mark.model, pytest.mark.filterwarnings("ignore")]

KINDS = list_kinds()
compile_layers = layer_compilation.compile_layers


@pytest.fixture(autouse=True)
def one_core() -> Iterator[None]:
    with cpu_threads.one_core():
        yield


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let compiled layers seem fast, read few texts at start and capture one small graph."""
    monkeypatch.setattr(layer_compilation, "_measure_gains", lambda *args: {"texts": 1.5})
    monkeypatch.setattr(acceleration, "short_texts", lambda: TEXTS)
    monkeypatch.setattr(acceleration, "passages", lambda: [TEXTS[0] * 2])
    monkeypatch.setattr(graph_capture, "list_shapes", lambda: [GraphShape(64, 3)])


def load(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch, compiler: Any) -> TorchBackend:
    """Load with `--compile` and a compiler of the test; norms are fused and graphs captured as well."""
    monkeypatch.setattr(acceleration, "compile_layers", functools.partial(compile_layers, compiler=compiler))
    return load_backend(folder, kind, compile=True)


@pytest.mark.parametrize(
    ("kind", "num_versions"),
    [("embedder: bert", 1), ("embedder: modernbert", 2), ("embedder: qwen3", 3), ("pooling: cls", 3),
     ("reranker: qwen3", 1)],
)  # fmt: skip
def test_every_batch_runs_compiled_layers_on_cuda_without_a_wait(
    kind: str, num_versions: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = CountingCompiler()
    with emulate_cuda():
        backend = load(kind, tmp_path, monkeypatch, compiler)
        eager = TorchBackend(backend.torch_model)
        network: Any = backend.torch_model.model[0]
        num_layers = network.model.config.num_hidden_layers
        assert compiler.num_compiled == num_versions
        for lengths in ([40, 40], [1, 50, 7, 20], [90]):
            before = compiler.num_runs
            with record() as log:
                in_flight = backend.launch(make_batch(*lengths))
            found = np.asarray(in_flight.result()["dense"])
            assert compiler.num_runs - before == num_layers
            assert not log.waits
            layers = [module for module in network.modules() if module._compiled_call_impl]
            calls = [layer._compiled_call_impl for layer in layers]
            for layer in layers:
                layer._compiled_call_impl = None
            expected = np.asarray(eager.launch(make_batch(*lengths)).result()["dense"])
            for layer, call in zip(layers, calls, strict=True):
                layer._compiled_call_impl = call
            assert np.abs(found - expected).max() <= 2e-2 * max(1, np.abs(expected).max())
        assert compiler.num_compiled == num_versions


def test_graphs_of_compiled_layers_are_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = CountingCompiler()
    with emulate_cuda():
        backend = load("embedder: qwen3", tmp_path, monkeypatch, compiler)
        assert len(backend.graphs) == 1
        before = compiler.num_runs, emulated_graphs.count_replays()
        found = np.asarray(backend.launch(make_batch(9, 14)).result()["dense"])
        assert (compiler.num_runs, emulated_graphs.count_replays()) == (before[0], before[1] + 1)
        eager = TorchBackend(backend.torch_model)
        expected = np.asarray(eager.launch(make_batch(9, 14)).result()["dense"])
        assert np.abs(found - expected).max() <= 2e-2
