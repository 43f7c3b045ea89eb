"""The script for GPUs, tried out on a CPU with tiny models: its arithmetic, its checks and its last line."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

from benchmarks import gpu
from infinity_emb.backends import packed_attention, packed_heads
from tests.backends.test_packed_attention import torch_kernel_replaced, varlen_attn_by_definition

pytestmark = pytest.mark.model

CPU = torch.device("cpu")


def _run(*arguments: str) -> tuple[int, list[str]]:
    num_threads = torch.get_num_threads()
    try:
        with contextlib.redirect_stdout(io.StringIO()) as stdout:
            code = gpu.main(["--device", "cpu", "--small", *arguments])
    finally:
        torch.set_num_threads(num_threads)
    return code, stdout.getvalue().splitlines()


@pytest.fixture(scope="module")
def finished() -> tuple[int, list[str]]:
    return _run()


@pytest.fixture
def _kernels_registered_again() -> Iterator[None]:
    """transformers keeps the last kernel registered: a broken one must not outlive its test."""
    yield
    packed_attention.register()


def test_all_checks_pass_and_every_model_is_measured(finished: tuple[int, list[str]]) -> None:
    code, lines = finished
    result = json.loads(lines[-1])

    assert code == 0
    assert result["is_passed"]
    assert [check["name"] for check in result["checks"]] == [
        "infinity_grouped float32 alone",
        "first-token-head float32",
        "last-token-head float32",
        "all-tokens-head float32",
        "modernbert-local float32",
        "modernbert-local float32 on demand",
        "mistral-window float32",
        "mistral-window float32 on demand",
        "bert-small float32",
        "bert-base float32",
        "bert-large float32",
        "qwen3-0.6b float32",
    ]
    assert all(check["is_passed"] for check in result["checks"])
    assert {(speed["model"], speed["workload"]) for speed in result["speeds"]} == {
        (shape.name, workload) for shape in gpu.SPEED_SHAPES for workload in ("16", "mixed")
    }


def test_last_line_tells_where_and_with_what_it_was_measured(finished: tuple[int, list[str]]) -> None:
    result = json.loads(finished[1][-1])

    assert result["torch"] == torch.__version__
    assert result["models"]["bert-base"]["num_hidden_layers"] == 2
    assert result["lengths"] == {"16": [16], "mixed": [4, 24, 8]}
    assert {"machine", "device", "transformers", "sentence_transformers", "dtype", "num_repeats"} <= set(
        result
    )


def test_ratios_and_shares_follow_from_the_medians(finished: tuple[int, list[str]]) -> None:
    for speed in json.loads(finished[1][-1])["speeds"]:
        packed, encode, forward = (speed[name]["median"] for name in ("packed", "encode", "forward"))
        assert speed["ratio_to_encode"] == pytest.approx(packed / encode)
        assert speed["ratio_to_forward"] == pytest.approx(packed / forward)
        rate = speed["matmul_flops_per_s"]["median"]
        assert speed["share"] == pytest.approx(packed * speed["flops_per_token"] / rate)
        for name in ("packed", "encode", "forward", "matmul_flops_per_s"):
            assert 0 < speed[name]["lowest"] <= speed[name]["median"] <= speed[name]["highest"]


def test_table_has_a_line_for_every_check_and_measurement(finished: tuple[int, list[str]]) -> None:
    _, lines = finished

    assert sum(line.startswith("ok ") for line in lines) == 12
    assert sum("@" in line for line in lines) == 1 + 8  # the head, and four models with two workloads each


def test_flops_of_an_encoder_equal_a_count_by_hand() -> None:
    """Three layers of four 8x8 and two 8x32 matrices; texts of 2 and 6 tokens make 4 + 36 pairs."""
    config = AutoConfig.for_model(
        "bert",
        hidden_size=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=10,
    )
    per_token = 2 * 3 * (4 * 64 + 2 * 256)  # 4608
    attention = 3 * 2 * (2 * 8 * 40) / 8  # scores and weighted sum, 480

    assert gpu.flops_per_token(AutoModel.from_config(config), [2, 6], is_causal=False) == 5088
    assert per_token + attention == 5088


def test_flops_of_a_decoder_with_grouped_heads_equal_a_count_by_hand() -> None:
    """Two layers: queries and output 8x8, keys and values 8x4, three 8x16; 3 tokens make 1 + 2 + 3 pairs."""
    config = AutoConfig.for_model(
        "qwen3",
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        intermediate_size=16,
        vocab_size=10,
    )
    per_token = 2 * 2 * (2 * 64 + 2 * 32 + 3 * 128)  # 2304
    attention = 2 * 2 * (2 * 8 * 6) / 3  # 128

    assert gpu.flops_per_token(AutoModel.from_config(config), [3], is_causal=True) == 2432
    assert per_token + attention == 2432


@pytest.mark.usefixtures("_kernels_registered_again")
def test_a_kernel_that_mixes_texts_ends_with_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    right = packed_attention.grouped_attention

    def without_borders(*args: Any, packed_layout: packed_attention.PackedLayout, **kwargs: Any) -> Any:
        num_tokens = int(packed_layout.cu_seq_lens[-1])
        starts = torch.tensor([0, num_tokens], dtype=torch.int32)
        one_text = packed_attention.PackedLayout(
            packed_attention.runs_of_equal_length([num_tokens]), starts, num_tokens
        )
        return right(*args, packed_layout=one_text, **kwargs)

    monkeypatch.setattr(packed_attention, "grouped_attention", without_borders)

    code, lines = _run("--models", "bert-small", "--json-only")

    assert code == 1
    [line] = lines
    result = json.loads(line)
    assert not result["is_passed"]
    # On demand each text is computed alone, so that there is nothing to mix.
    together = [check for check in result["checks"] if "float32 on demand" not in check["name"]]
    assert not any(check["is_passed"] for check in together)
    assert "EXPECTED packed" in result["checks"][-1]["detail"], "padded instead, and slow without a word"


def test_a_window_that_is_off_by_one_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = packed_attention._band_mask
    monkeypatch.setattr(
        packed_attention,
        "_band_mask",
        lambda length, window, **options: right(length, window and window + 1, **options),
    )

    check = gpu.check_kernel(packed_attention.GROUPED, CPU, torch.float32)

    assert not check.is_passed
    assert "window=1" in check.detail


def test_the_cuda_kernel_is_checked_with_torch_stood_in_for() -> None:
    with torch_kernel_replaced(varlen_attn_by_definition):
        assert gpu.check_kernel(packed_attention.VARLEN, CPU, torch.bfloat16).is_passed

    def with_wider_windows(
        *args: Any, scale: float, window_size: tuple[int, int], enable_gqa: bool = False
    ) -> torch.Tensor:
        left, right = window_size
        window_size = (left + 1 if left >= 0 else left, right)
        return varlen_attn_by_definition(*args, scale=scale, window_size=window_size, enable_gqa=enable_gqa)

    with torch_kernel_replaced(with_wider_windows):
        assert not gpu.check_kernel(packed_attention.VARLEN, CPU, torch.float32).is_passed


def test_a_kernel_that_raises_is_a_failed_check() -> None:
    def refuse(*args: Any, scale: float, window_size: tuple[int, int], **kwargs: Any) -> torch.Tensor:
        raise RuntimeError("no kernel for this device")

    with torch_kernel_replaced(refuse):
        check = gpu.check_kernel(packed_attention.VARLEN, CPU, torch.bfloat16)

    assert not check.is_passed
    assert "no kernel for this device" in check.detail


def test_rows_of_the_neighbour_are_found() -> None:
    [shape] = [shape for shape in gpu.SPEED_SHAPES if shape.name == "bert-small"]
    model = gpu.build_pipeline(shape, is_small=True)
    sequences = [gpu.random_ids(length) for length in (9, 4, 30)]
    expected = gpu.rows_one_by_one(model, sequences)
    shifted = np.roll(expected, 1, axis=0)

    for rows, is_right in ((expected, True), (shifted, False)):
        check = gpu.check_model("bert", model, sequences, rows, packed_attention.GROUPED, CPU, torch.float32)
        assert check.is_passed == is_right


@pytest.mark.parametrize("name", [shape.name for shape in gpu.HEAD_SHAPES])
def test_a_head_that_is_handed_the_wrong_rows_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend's own check at loading would notice it and pad; so it is broken after that."""
    [shape] = [shape for shape in gpu.HEAD_SHAPES if shape.name == name]
    scorer = gpu.build_scorer(shape, is_small=True)
    plan = gpu.PLANS["small"]
    assert gpu.check_scorer(shape, scorer, packed_attention.GROUPED, CPU, torch.float32, plan).is_passed

    make_backend = gpu.make_backend

    def make_broken(model: Any) -> Any:
        made = make_backend(model)
        right = packed_heads.PackedBase.forward

        def of_the_neighbour(self: Any, *args: Any, packed_row: Any = None, **kwargs: Any) -> Any:
            if packed_row is not None:
                packed_row = replace(packed_row, gather=packed_row.gather.roll(1, 0))
            return right(self, *args, packed_row=packed_row, **kwargs)

        monkeypatch.setattr(packed_heads.PackedBase, "forward", of_the_neighbour)
        return made

    monkeypatch.setattr(gpu, "make_backend", make_broken)
    check = gpu.check_scorer(shape, scorer, packed_attention.GROUPED, CPU, torch.float32, plan)
    assert not check.is_passed
    assert "EXPECTED" not in check.detail


def test_float32_on_demand_is_told_from_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    [shape] = [shape for shape in gpu.WINDOW_SHAPES if shape.name == "modernbert-local"]
    model = gpu.build_pipeline(shape, is_small=True)
    sequences = [gpu.random_ids(length) for length in (9, 4, 30)]
    expected = gpu.rows_one_by_one(model, sequences)
    assert gpu.check_full_precision("", model, sequences, expected, CPU).is_passed

    rows_of = gpu.rows_of
    monkeypatch.setattr(gpu, "rows_of", lambda backend, batch, **_: rows_of(backend, batch))
    assert not gpu.check_full_precision("", model, sequences, expected, CPU).is_passed


def test_half_precision_copy_keeps_the_frequencies_of_rotary_positions() -> None:
    """Rounded to bfloat16 they would be up to 0.2 % off, which at token 500 is most of a radian."""
    [shape] = [shape for shape in gpu.SPEED_SHAPES if shape.name == "qwen3-0.6b"]
    model = gpu.build_pipeline(shape, is_small=True)

    copied = gpu.copy_to_device(model, CPU, torch.bfloat16)

    assert {parameter.dtype for parameter in copied.parameters()} == {torch.bfloat16}
    assert torch.equal(copied[0].model.rotary_emb.inv_freq, model[0].model.rotary_emb.inv_freq)


def test_next_batch_is_launched_before_the_one_before_is_collected() -> None:
    events: list[str] = []

    class Launched:
        def __init__(self, number: int) -> None:
            self.number = number

        def collect(self) -> None:
            events.append(f"collect {self.number}")

    class Recorder:
        num_in_flight = 2

        def launch(self, number: int) -> Launched:
            events.append(f"launch {number}")
            return Launched(number)

    gpu.pump(Recorder(), [0, 1, 2])  # type: ignore[arg-type, list-item]

    assert events == ["launch 0", "launch 1", "collect 0", "launch 2", "collect 1", "collect 2"]


def test_without_a_gpu_the_default_ends_with_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(SystemExit) as stopped:
        gpu.main([])

    assert stopped.value.code == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_script_needs_no_server_packages() -> None:
    blocked = ("fastapi", "uvicorn", "orjson", "pybase64", "prometheus_client", "typer")
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); import benchmarks.gpu"

    subprocess.run([sys.executable, "-c", code], check=True)
