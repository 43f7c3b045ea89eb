"""Small batches on the emulated CUDA device replay captured graphs and have the outputs of eager batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.gpu import emulated_graphs
from benchmarks.gpu.emulated_cuda import Log, emulate_cuda, record
from infinity_emb.backends.base import LoadedModel
from infinity_emb.backends.torch import cpu_threads, graph_capture, graphs
from infinity_emb.backends.torch.backend import TorchBackend
from infinity_emb.backends.torch.graph_capture import capture_graphs
from infinity_emb.backends.torch.graphs import GraphShape, list_shapes
from infinity_emb.items import Encoded, ForwardSpec
from tests.support.accelerated_models import get_backend, load_folder, make_batch, score
from tests.support.model_kinds import list_kinds

pytestmark = [pytest.mark.model, pytest.mark.filterwarnings("ignore")]

KINDS = list_kinds()


@pytest.fixture(autouse=True)
def few_shapes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Capture two small shapes only, on one core."""
    shapes = [GraphShape(64, 2), GraphShape(64, 9)]
    monkeypatch.setattr(graph_capture, "list_shapes", lambda: shapes)
    with cpu_threads.one_core():
        yield


def load(kind: str, folder: Path) -> LoadedModel:
    return load_folder(KINDS[kind].save(folder), device="cuda", model_warmup=False)


def capture(model: LoadedModel) -> TorchBackend:
    backend = get_backend(model)
    capture_graphs(backend, make_batch(3, 20, 9, 14, 5, 31, 7, 12), score)
    return backend


def compute(backend: TorchBackend, batch: list[Encoded]) -> tuple[Any, Log, int]:
    """Return the vectors, what was launched, and how many graphs were replayed."""
    before = emulated_graphs.count_replays()
    with record() as log:
        in_flight = backend.launch(batch)
    return in_flight.result()["dense"], log, emulated_graphs.count_replays() - before


@pytest.mark.parametrize(
    "kind",
    ["embedder: bert", "embedder: roberta", "pooling: cls", "pooling: lasttoken", "pooling: mean",
     "embedder: qwen3", "reranker: bert", "reranker: qwen3", "reranker: modernbert"],
)  # fmt: skip
def test_a_small_batch_replays_a_graph_and_has_the_outputs_of_an_eager_one(kind: str, tmp_path: Path) -> None:
    with emulate_cuda():
        backend = capture(load(kind, tmp_path))
        assert len(backend.graphs) == 2
        eager = TorchBackend(backend.torch_model)
        for lengths in ([12], [5, 30, 9], [40], [1, 1, 1, 1, 1, 1]):
            batch = make_batch(*lengths)
            found, log, num_replays = compute(backend, batch)
            assert num_replays == 1
            assert [each.name for each in log.launches if each.name != "_to_copy"] == []
            assert not log.waits
            expected, log, num_replays = compute(eager, batch)
            assert num_replays == 0
            assert len(log.launches) > 10
            assert found.shape == expected.shape
            assert np.abs(found - expected).max() <= 2e-2 * max(1, np.abs(expected).max())


def test_a_dummy_text_may_be_longer_than_the_model_has_positions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = [GraphShape(64, 2), GraphShape(1024, 65)]
    monkeypatch.setattr(graph_capture, "list_shapes", lambda: shapes)
    with emulate_cuda():
        backend = capture(load("embedder: roberta", tmp_path))
        assert [captured.shape for _, captured in backend.graphs] == shapes
        batch = make_batch(*[2, 3, 4, 7] * 16)
        found, _, num_replays = compute(backend, batch)
        expected, _, _ = compute(TorchBackend(backend.torch_model), batch)
    assert num_replays == 1
    assert np.abs(found - expected).max() <= 2e-2


@pytest.mark.parametrize("kind", ["embedder: bert", "reranker: bert"])
def test_a_model_whose_attention_takes_several_kernels_is_not_captured(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="infinity_emb")
    with emulate_cuda():
        path = KINDS[kind].save(tmp_path)
        backend = capture(load_folder(path, device="cuda", dtype="float32", model_warmup=False))
    assert len(backend.graphs) == 0
    assert "captured no CUDA graphs" in caplog.text


def test_two_batches_in_flight_keep_their_outputs_apart(tmp_path: Path) -> None:
    with emulate_cuda():
        backend = capture(load("pooling: mean", tmp_path))
        batches = [make_batch(12), make_batch(13)]
        both = [each.result()["dense"] for each in [backend.launch(batch) for batch in batches]]
        alone = [backend.launch(batch).result()["dense"] for batch in batches]
    assert np.array_equal(np.array(both), np.array(alone))
    assert not np.array_equal(both[0], both[1])


def test_larger_and_other_batches_stay_eager(tmp_path: Path) -> None:
    with emulate_cuda():
        backend = capture(load("pooling: mean", tmp_path))
        other = ForwardSpec(outputs=("tokens",))
        for batch in (make_batch(64), make_batch(30, 31, 10), make_batch(*[2] * 9)):
            assert compute(backend, batch)[2] == 0
        before = emulated_graphs.count_replays()
        backend.launch(make_batch(5, spec=other))
        backend.launch(make_batch(5), full_precision=True)
        assert emulated_graphs.count_replays() == before


def test_a_graph_whose_outputs_differ_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    replay = emulated_graphs.EmulatedGraph.replay

    def replay_too_little(graph: emulated_graphs.EmulatedGraph) -> None:
        graph.steps = graph.steps[: len(graph.steps) // 2]
        replay(graph)

    monkeypatch.setattr(emulated_graphs.EmulatedGraph, "replay", replay_too_little)
    with emulate_cuda():
        backend = capture(load("pooling: mean", tmp_path))
    assert len(backend.graphs) == 0
    assert "CUDA graphs are not used for some batches: 64 tokens in 2 texts" in caplog.text


def test_a_model_that_waits_for_the_device_is_not_captured(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with emulate_cuda():
        backend = capture(load("pooling: weightedmean", tmp_path))
        assert len(backend.graphs) == 0
        assert "operation not permitted when stream is capturing" in caplog.text
        compute(backend, make_batch(12))


def test_no_graph_is_captured_without_memory_for_it_or_on_another_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_cpu = load_folder(KINDS["pooling: mean"].save(tmp_path), device="cpu", model_warmup=False)
    assert len(capture(on_cpu).graphs) == 0
    with emulate_cuda():
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (10**9, 10**11))
        assert len(capture(load("pooling: mean", tmp_path / "other")).graphs) == 0


def test_capturing_stops_at_its_share_of_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    free = iter([10**11, 10**11, 10**11 - 10**9, 10**11 - 5 * 10**9])
    monkeypatch.setattr(graph_capture, "free_bytes", lambda device: next(free))
    monkeypatch.setattr(graph_capture, "count_bytes_for_graphs", lambda device: 4 * 10**9)
    next(free)
    with emulate_cuda():
        backend = capture(load("pooling: mean", tmp_path))
    assert len(backend.graphs) == 1
    assert "64 tokens would take more than 4000 MB in all" in caplog.text


@given(lengths=st.lists(st.integers(1, 200), min_size=1, max_size=40))
def test_the_smallest_shape_that_fits_is_filled_exactly(lengths: list[int]) -> None:
    items = make_batch(*lengths)
    shapes = [shape for shape in list_shapes() if shape.fits(sum(lengths), len(lengths))]
    for shape in shapes:
        filled = shape.fill(items)
        assert len(filled) == shape.num_texts
        assert sum(len(item.token_ids) for item in filled) == shape.num_tokens
        assert min(len(item.token_ids) for item in filled) >= 1
        assert filled[: len(items)] == items


def test_shapes_come_in_ascending_order_for_one_text_and_for_many() -> None:
    shapes = graphs.list_shapes()
    assert shapes == sorted(shapes)
    assert shapes[0] == (64, 2)
    assert shapes[-1] == (1024, 65)
