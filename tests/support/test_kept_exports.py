"""Exports that tests share are those of equal networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.kept_exports import Export, keep_exports


class Scale(nn.Module):
    """Multiply, by a plain attribute."""

    factor = 1.0

    def forward(self, values: Tensor) -> Tensor:
        return values * self.factor


def make_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), Scale()).eval()


@pytest.fixture
def exported() -> list[nn.Module]:
    return []


@pytest.fixture
def export(tmp_path: Path, exported: list[nn.Module]) -> Export:
    def write(network: nn.Module, _: Any, path: Path, **__: Any) -> None:
        exported.append(network)
        path.write_bytes(b"%d" % len(exported))

    (tmp_path / "kept").mkdir()
    return keep_exports(write, tmp_path / "kept")


def test_equal_networks_are_exported_once(export: Export, exported: list[nn.Module], tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        export(make_network(), (torch.ones(1, 2),), tmp_path / name / "graph.onnx")
    assert len(exported) == 1
    assert (tmp_path / "second" / "graph.onnx").read_bytes() == b"1"


def set_eps(network: Any, _: pytest.MonkeyPatch) -> None:
    network[1].eps = 0.5


def set_attribute(network: Any, _: pytest.MonkeyPatch) -> None:
    network[2].factor = 2.0


def replace_forward(network: Any, _: pytest.MonkeyPatch) -> None:
    network[2].forward = lambda values: values + 1


def replace_forward_of_class(_: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Scale, "forward", lambda self, values: values - self.factor)


def add_hook(network: Any, _: pytest.MonkeyPatch) -> None:
    network[0].register_forward_hook(lambda module, args, output: output * 2)


@pytest.mark.parametrize(
    "change", [set_eps, set_attribute, replace_forward, replace_forward_of_class, add_hook]
)
def test_a_network_with_other_attributes_or_code_is_exported_again(
    change: Callable[[Any, pytest.MonkeyPatch], None],
    export: Export,
    exported: list[nn.Module],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A graph of the same weights hid what a changed network computes."""
    path = tmp_path / "graph.onnx"
    export(make_network(), (torch.ones(1, 2),), path)
    network = make_network()
    change(network, monkeypatch)
    export(network, (torch.ones(1, 2),), path)
    assert len(exported) == 2
    assert path.read_bytes() == b"2"


def test_a_full_disk_is_an_error(export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was taken for another process that was first."""

    def fail(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no space left"):
        export(make_network(), (torch.ones(1, 2),), tmp_path / "graph.onnx")
