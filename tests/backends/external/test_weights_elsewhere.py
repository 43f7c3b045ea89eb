"""The libraries that compute graphs refuse weights outside of a graph's folder; our code relies on that.

Links out of a folder are refused before, by `check_folder`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from infinity_emb import EngineArgs
from infinity_emb.errors import StartupError

SECRET = np.arange(4, dtype=np.float32)


def save_graph(folder: Path, location: str, *, is_constant: bool) -> Path:
    """Add a vector from another file, as an initializer or inside of a node, to the input."""
    weight = TensorProto(name="" if is_constant else "w", data_type=TensorProto.FLOAT, dims=[4])
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        weight.external_data.add(key=key, value=value)
    constants = [helper.make_node("Constant", [], ["w"], value=weight)] if is_constant else []
    graph = helper.make_graph(
        [*constants, helper.make_node("Add", ["x", "w"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
        [] if is_constant else [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def compute(engine: str, graph: Path) -> list[float]:
    """Compute the graph for zeros. Raises StartupError."""
    zeros = np.zeros(4, dtype=np.float32)
    if engine == "onnx":
        pytest.importorskip("onnxruntime")
        from infinity_emb.backends.onnx.session import choose_provider, open_session

        args = EngineArgs(engine="onnx", device="cpu").load
        session = open_session(graph, choose_provider(args), {}, args)
        return list(session.run(None, {"x": zeros})[0])
    pytest.importorskip("openvino")
    from infinity_emb.backends.openvino.compile import compile_graph

    options = {"INFERENCE_PRECISION_HINT": "f32"}
    return list(compile_graph(graph, "CPU", options)([zeros])[0])


@pytest.mark.parametrize("is_constant", [True, False])
@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_weights_outside_of_a_graphs_folder_are_not_read(
    engine: str, is_constant: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFINITY_HOME", str(tmp_path / "home"))
    folder = tmp_path / "model"
    folder.mkdir()
    for path in (tmp_path / "secret.bin", folder / "own.bin"):
        SECRET.tofile(path)
    assert compute(engine, save_graph(folder, "own.bin", is_constant=is_constant)) == list(SECRET)
    for location in ("../secret.bin", str(tmp_path / "secret.bin"), "*/_ORT_MEM_ADDR_/*"):
        graph = save_graph(folder, location, is_constant=is_constant)
        with pytest.raises(StartupError):
            compute(engine, graph)
