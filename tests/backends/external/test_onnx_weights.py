from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from infinity_emb.backends.external.onnx_weights import find_weight_files


def save_graph(path: Path, *locations: str) -> Path:
    """A matrix in each of the files: the first an initializer, others inside of nodes, as in BAAI/bge-m3."""
    tensors = []
    for number, location in enumerate(locations):
        tensor = numpy_helper.from_array(np.full((8, 8), number, dtype=np.float32), f"matrix{number}")
        onnx.external_data_helper.set_external_data(tensor, location, offset=0, length=256)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensors.append(tensor)
    nodes = [helper.make_node("Constant", [], [each.name], value=each) for each in tensors[1:]]
    inputs = [helper.make_tensor_value_info("location", TensorProto.FLOAT, ["batch", 8])]
    outputs = [helper.make_tensor_value_info("location", TensorProto.FLOAT, ["batch", 8])]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, tensors[:1])
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


@pytest.mark.parametrize(
    "locations",
    [
        [],
        ["model.onnx_data"],
        ["model.onnx_data", "Constant_7_attr__value"],
        ["weights/größe", "model.onnx_data"],
        ["x" * 130, "y" * 127, "z" * 128],
    ],
)
def test_weights_are_found_under_any_name(tmp_path: Path, locations: list[str]) -> None:
    assert sorted(find_weight_files(save_graph(tmp_path / "m.onnx", *locations))) == sorted(locations)


def test_a_file_of_several_weights_is_named_once(tmp_path: Path) -> None:
    assert find_weight_files(save_graph(tmp_path / "m.onnx", "data", "./data", "data")) == ("data",)


def test_files_outside_the_folder_are_left_out(tmp_path: Path) -> None:
    named = ["../other/model.onnx_data", "/etc/passwd", ".", "a/../../b", ""]
    assert find_weight_files(save_graph(tmp_path / "m.onnx", *named)) == ()


@pytest.mark.parametrize("content", [b"", b"no graph", b"\x0a\x08location\x12", b"\xff" * 100])
def test_a_damaged_graph_names_no_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    assert find_weight_files(tmp_path / "m.onnx") == ()
    assert find_weight_files(tmp_path / "none.onnx") == ()


def test_a_graph_that_was_written_again_is_read_again(tmp_path: Path) -> None:
    assert find_weight_files(save_graph(tmp_path / "m.onnx", "data")) == ("data",)
    assert find_weight_files(save_graph(tmp_path / "m.onnx", "other-data")) == ("other-data",)


def test_weights_in_the_branch_of_a_node_are_found(tmp_path: Path) -> None:
    inner = onnx.load(save_graph(tmp_path / "inner.onnx", "data"), load_external_data=False).graph
    node = helper.make_node("If", ["condition"], ["result"], then_branch=inner, else_branch=inner)
    outputs = [helper.make_tensor_value_info("result", TensorProto.FLOAT, ["batch", 8])]
    graph = helper.make_graph([node], "graph", [], outputs)
    path = tmp_path / "outer.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    assert find_weight_files(path) == ("data",)
