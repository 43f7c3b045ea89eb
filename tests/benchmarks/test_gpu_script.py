"""The script for GPUs, tried out on a CPU with tiny models: its arithmetic, its checks and its last line."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from benchmarks.gpu import __main__ as script
from benchmarks.gpu import shapes, speeds, subjects
from infinity_emb.backends.torch import packed_attention, post_norm_layers
from infinity_emb.backends.torch.packed_layout import PackedLayout, find_equal_runs

pytestmark = pytest.mark.model

CPU = torch.device("cpu")


def _run(*arguments: str) -> tuple[int, list[str]]:
    num_threads = torch.get_num_threads()
    try:
        with contextlib.redirect_stdout(io.StringIO()) as stdout:
            code = script.main(["--device", "cpu", "--small", *arguments])
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
        (shape.name, workload) for shape in shapes.SPEED_SHAPES for workload in ("16", "mixed")
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

    assert speeds.count_flops_per_token(AutoModel.from_config(config), [2, 6], is_causal=False) == 5088
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

    assert speeds.count_flops_per_token(AutoModel.from_config(config), [3], is_causal=True) == 2432
    assert per_token + attention == 2432


@pytest.mark.usefixtures("_kernels_registered_again")
def test_a_kernel_that_mixes_texts_ends_with_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    right = packed_attention.grouped_attention

    def without_borders(*args: Any, packed_layout: PackedLayout, **kwargs: Any) -> Any:
        num_tokens = int(packed_layout.cu_seq_lens[-1])
        starts = torch.tensor([0, num_tokens], dtype=torch.int32)
        one_text = PackedLayout(find_equal_runs([num_tokens]), starts, num_tokens)
        return right(*args, packed_layout=one_text, **kwargs)

    for module in (packed_attention, post_norm_layers):
        monkeypatch.setattr(module, "grouped_attention", without_borders)

    code, lines = _run("--models", "bert-small", "--json-only")

    assert code == 1
    [line] = lines
    result = json.loads(line)
    assert not result["is_passed"]
    # On demand each text is computed alone, so that there is nothing to mix.
    together = [check for check in result["checks"] if "float32 on demand" not in check["name"]]
    assert not any(check["is_passed"] for check in together)
    assert "EXPECTED packed" in result["checks"][-1]["detail"], "padded instead, and slow without a word"


def test_next_batch_is_launched_before_the_one_before_is_collected() -> None:
    events: list[str] = []

    class InFlightBatch:
        def __init__(self, number: int) -> None:
            self.number = number

        def result(self) -> None:
            events.append(f"collect {self.number}")

    class Recorder:
        num_in_flight = 2

        def launch(self, number: int) -> InFlightBatch:
            events.append(f"launch {number}")
            return InFlightBatch(number)

    subjects.pump(Recorder(), [0, 1, 2])

    assert events == ["launch 0", "launch 1", "collect 0", "launch 2", "collect 1", "collect 2"]


def test_without_a_gpu_the_default_ends_with_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(SystemExit) as stopped:
        script.main([])

    assert stopped.value.code == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_script_needs_no_server_packages() -> None:
    blocked = ("fastapi", "uvicorn", "orjson", "pybase64", "prometheus_client")
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); import benchmarks.gpu.__main__"

    subprocess.run([sys.executable, "-c", code], check=True)
