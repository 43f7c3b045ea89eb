"""How a compiled graph is kept: one small graph of `openvino.opset13`, and no model."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infinity_emb.backends.openvino import compile as openvino_compiling
from infinity_emb.backends.openvino.compile import compile_graph
from infinity_emb.backends.openvino.runtime import openvino
from infinity_emb.errors import StartupError

PROPERTIES = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 1}
ROW = np.ones((1, 4), dtype=np.float32)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INFINITY_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def save_graph(path: Path, factor: float) -> Path:
    """It answers its row times a 4 x 4 matrix of one number."""
    opset: Any = openvino.opset13
    row = opset.parameter([-1, 4], openvino.Type.f32, name="row")
    weights = opset.constant(np.full((4, 4), factor, dtype=np.float32))
    path.parent.mkdir(exist_ok=True, parents=True)
    openvino.save_model(
        openvino.Model([opset.matmul(row, weights, False, False)], [row]), path, compress_to_fp16=False
    )
    return path


def answer_of(graph: Path) -> float:
    compiled = compile_graph(graph, "CPU", PROPERTIES)
    return float(compiled([ROW])[0][0, 0])


def kept_files(home: Path) -> list[Path]:
    return sorted(path for path in home.rglob("*") if path.is_file())


def test_a_graph_is_compiled_once(home: Path, tmp_path: Path) -> None:
    graph = save_graph(tmp_path / "graph.xml", 2)
    first = compile_graph(graph, "CPU", PROPERTIES)
    (kept,) = kept_files(home)
    again = compile_graph(graph, "CPU", PROPERTIES)
    assert kept_files(home) == [kept]
    assert [each.get_property("LOADED_FROM_CACHE") for each in (first, again)] == [False, True]
    assert float(again([ROW])[0][0, 0]) == 8


def test_a_graph_with_other_weights_is_compiled_anew(home: Path, tmp_path: Path) -> None:
    """Its .xml, which tells the structure, is the same."""
    graph = save_graph(tmp_path / "graph.xml", 2)
    assert answer_of(graph) == 8
    graph.with_suffix(".bin").write_bytes(np.full((4, 4), 3, dtype=np.float32).tobytes())
    assert answer_of(graph) == 12


def test_another_number_format_is_compiled_anew(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = save_graph(tmp_path / "graph.xml", 2)
    names = {
        openvino_compiling.choose_compiled_folder([graph], "CPU", {"INFERENCE_PRECISION_HINT": hint})
        for hint in ("f32", "bf16")
    }
    monkeypatch.setattr(openvino, "__version__", "another")
    names.add(openvino_compiling.choose_compiled_folder([graph], "CPU", {"INFERENCE_PRECISION_HINT": "f32"}))
    assert len(names) == 3


@pytest.mark.parametrize("content", [b"", b"nothing of the kind" * 100])
def test_a_damaged_entry_is_compiled_anew(home: Path, tmp_path: Path, content: bytes) -> None:
    graph = save_graph(tmp_path / "graph.xml", 2)
    assert answer_of(graph) == 8
    (kept,) = kept_files(home)
    kept.chmod(0o600)
    kept.write_bytes(content)
    assert answer_of(graph) == 8


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("INFINITY_HOME", str(tmp_path / "file"))
    assert answer_of(save_graph(tmp_path / "graph.xml", 2)) == 8
    assert "compiling graph.xml without the cache" in caplog.text


def test_two_that_compile_at_once_leave_one_whole_entry(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = save_graph(tmp_path / "graph.xml", 2)
    both_compile = threading.Barrier(2, timeout=30)
    compile_now = openvino_compiling.read_and_compile
    folders: list[str] = []

    def compile_together(graph: Path, device: str, properties: Any) -> Any:
        both_compile.wait()
        folders.append(properties["CACHE_DIR"])
        return compile_now(graph, device, properties)

    monkeypatch.setattr(openvino_compiling, "read_and_compile", compile_together)
    answers: list[float] = []
    threads = [threading.Thread(target=lambda: answers.append(answer_of(graph))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [8, 8]
    assert len(set(folders)) == 2
    (kept,) = kept_files(home)
    assert not os.listdir(kept.parent.parent)[1:], "no draft is left"


def test_drafts_of_killed_processes_go_after_a_day(home: Path, tmp_path: Path) -> None:
    graph = save_graph(tmp_path / "graph.xml", 2)
    compile_graph(graph, "CPU", PROPERTIES)
    (kept,) = kept_files(home)
    left = kept.parent.parent / f"of-a-graph-of-before.{'a' * 32}.draft"
    left.mkdir()
    os.utime(left, (0, 0))
    compile_graph(graph, "CPU", PROPERTIES)
    assert left.exists(), "nothing is looked for where nothing is made"
    compile_graph(save_graph(tmp_path / "another.xml", 3), "CPU", PROPERTIES)
    assert not left.exists()


@pytest.mark.parametrize("raised", [RuntimeError("[GPU] Exceeded max size of memory object"), MemoryError()])
def test_lack_of_memory_is_told_from_a_graph_that_cannot_be_computed(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception
) -> None:
    """And nothing is compiled a second time for it."""
    num_calls = 0

    def fail(*given: Any) -> None:
        nonlocal num_calls
        num_calls += 1
        raise raised

    monkeypatch.setattr(openvino_compiling, "read_and_compile", fail)
    with pytest.raises(MemoryError):
        compile_graph(save_graph(tmp_path / "graph.xml", 2), "CPU", PROPERTIES)
    assert num_calls == 1


@pytest.mark.parametrize("name", ["graph.xml", "graph.onnx"])
def test_a_file_that_is_no_graph_is_refused(home: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no graph")
    with pytest.raises(StartupError, match=rf"OpenVINO cannot compute .*{name} on CPU"):
        compile_graph(tmp_path / name, "CPU", PROPERTIES)
    assert not kept_files(home)
