"""The checks of the script for GPUs find what is broken, here on a CPU with tiny models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.gpu import checks, models, shapes
from infinity_emb.backends.torch import attention_runs, packed_attention, packed_heads
from tests.backends.torch.test_packed_attention import torch_kernel_replaced, varlen_attn_by_definition

pytestmark = pytest.mark.model

CPU = torch.device("cpu")


def test_a_window_that_is_off_by_one_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = attention_runs.make_band_mask
    monkeypatch.setattr(
        attention_runs,
        "make_band_mask",
        lambda length, window, **options: right(length, window and window + 1, **options),
    )

    check = checks.check_kernel(packed_attention.GROUPED, CPU, torch.float32)

    assert not check.is_passed
    assert "window=1" in check.detail


def test_the_cuda_kernel_is_checked_with_torch_stood_in_for() -> None:
    with torch_kernel_replaced(varlen_attn_by_definition):
        assert checks.check_kernel(packed_attention.VARLEN, CPU, torch.bfloat16).is_passed

    def with_wider_windows(
        *args: Any, scale: float, window_size: tuple[int, int], enable_gqa: bool = False
    ) -> torch.Tensor:
        left, right = window_size
        window_size = (left + 1 if left >= 0 else left, right)
        return varlen_attn_by_definition(*args, scale=scale, window_size=window_size, enable_gqa=enable_gqa)

    with torch_kernel_replaced(with_wider_windows):
        assert not checks.check_kernel(packed_attention.VARLEN, CPU, torch.float32).is_passed


def test_a_kernel_that_raises_is_a_failed_check() -> None:
    def refuse(*args: Any, scale: float, window_size: tuple[int, int], **kwargs: Any) -> torch.Tensor:
        raise RuntimeError("no kernel for this device")

    with torch_kernel_replaced(refuse):
        check = checks.check_kernel(packed_attention.VARLEN, CPU, torch.bfloat16)

    assert not check.is_passed
    assert "no kernel for this device" in check.detail


def test_rows_of_the_neighbour_are_found() -> None:
    [shape] = [shape for shape in shapes.SPEED_SHAPES if shape.name == "bert-small"]
    model = models.build_pipeline(shape, is_small=True)
    sequences = [models.make_random_ids(length) for length in (9, 4, 30)]
    expected = models.compute_rows_one_by_one(model, sequences)
    shifted = np.roll(expected, 1, axis=0)

    for rows, is_right in ((expected, True), (shifted, False)):
        check = checks.check_model(
            "bert", model, sequences, rows, packed_attention.GROUPED, CPU, torch.float32
        )
        assert check.is_passed == is_right


@pytest.mark.parametrize("name", [shape.name for shape in shapes.HEAD_SHAPES])
def test_a_head_that_is_handed_the_wrong_rows_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend's own check at loading would notice it and pad; so it is broken after that."""
    [shape] = [shape for shape in shapes.HEAD_SHAPES if shape.name == name]
    scorer = models.build_scorer(shape, is_small=True)
    plan = shapes.PLANS["small"]
    assert checks.check_scorer(shape, scorer, packed_attention.GROUPED, CPU, torch.float32, plan).is_passed

    make_backend = models.make_backend

    def make_broken(model: Any) -> Any:
        made = make_backend(model)
        right = packed_heads.PackedBase.forward

        def of_the_neighbour(self: Any, *args: Any, packed_sequences: Any = None, **kwargs: Any) -> Any:
            made = right(self, *args, packed_sequences=packed_sequences, **kwargs)
            if packed_sequences is not None:
                for name, rows in made.items():
                    made[name] = rows.roll(1, 0)
            return made

        monkeypatch.setattr(packed_heads.PackedBase, "forward", of_the_neighbour)
        return made

    monkeypatch.setattr(models, "make_backend", make_broken)
    check = checks.check_scorer(shape, scorer, packed_attention.GROUPED, CPU, torch.float32, plan)
    assert not check.is_passed
    assert "EXPECTED" not in check.detail


def test_float32_on_demand_is_told_from_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    [shape] = [shape for shape in shapes.WINDOW_SHAPES if shape.name == "modernbert-local"]
    model = models.build_pipeline(shape, is_small=True)
    sequences = [models.make_random_ids(length) for length in (9, 4, 30)]
    expected = models.compute_rows_one_by_one(model, sequences)
    assert checks.check_full_precision("", model, sequences, expected, CPU).is_passed

    compute_rows = models.compute_rows
    monkeypatch.setattr(models, "compute_rows", lambda backend, batch, **_: compute_rows(backend, batch))
    assert not checks.check_full_precision("", model, sequences, expected, CPU).is_passed


def test_half_precision_copy_keeps_the_frequencies_of_rotary_positions() -> None:
    """Rounded to bfloat16 they would be up to 0.2 % off, which at token 500 is most of a radian."""
    [shape] = [shape for shape in shapes.SPEED_SHAPES if shape.name == "qwen3-0.6b"]
    model = models.build_pipeline(shape, is_small=True)

    copied = models.copy_to_device(model, CPU, torch.bfloat16)

    assert {parameter.dtype for parameter in copied.parameters()} == {torch.bfloat16}
    copy, original = (each[0].get_buffer("model.rotary_emb.inv_freq") for each in (copied, model))
    assert torch.equal(copy, original)
