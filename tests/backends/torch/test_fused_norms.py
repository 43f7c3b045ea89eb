"""Fused norms round where those of transformers round, and are used on CUDA only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from benchmarks.gpu.emulated_cuda import emulate_cuda
from infinity_emb.backends.torch import acceleration, cpu_threads, fused_norms
from infinity_emb.backends.torch.fused_norms import FusedNorm, find_norms, fuse_norms
from infinity_emb.backends.torch.module_classes import set_classes
from tests.support.accelerated_models import (
    count_modules,
    load_backend,
    make_batch,
    run,
    score,
    shorten_start,
)

pytestmark = [pytest.mark.model, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def one_core(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Read few texts at start, fuse only norms and capture no graphs."""
    shorten_start(monkeypatch)
    monkeypatch.setattr(acceleration, "fuse_products", lambda *args: False)
    with cpu_threads.one_core():
        yield


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("norm_class", [Qwen3RMSNorm, LlamaRMSNorm])
def test_a_fused_norm_is_bit_equal_to_that_of_transformers(norm_class: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = norm_class(64, eps=1e-6).to(dtype)
    nn.init.normal_(norm.weight)
    hidden = (torch.randn(5, 7, 64) * 10).to(dtype)
    expected = norm(hidden)
    set_classes(find_norms(nn.Sequential(norm)))
    assert isinstance(norm, FusedNorm)
    assert torch.equal(norm(hidden), expected)


class GatedRMSNorm(LlamaRMSNorm):
    """Takes a second input, as the norms of Mamba and of Qwen3.5 do."""

    def forward(self, hidden_states: Tensor, gate: Tensor | None = None) -> Tensor:
        normed: Tensor = super().forward(hidden_states)
        return normed if gate is None else normed * gate


class OtherEpsilonRMSNorm(LlamaRMSNorm):
    """Adds ten times the epsilon that it has."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        spread = hidden_states.float().pow(2).mean(-1, keepdim=True) + 10 * self.variance_epsilon
        return self.weight * (hidden_states * torch.rsqrt(spread)).to(hidden_states.dtype)


@pytest.mark.parametrize("norm_class", [GatedRMSNorm, OtherEpsilonRMSNorm, Olmo2RMSNorm, Gemma3RMSNorm])
def test_a_norm_that_computes_something_else_is_not_fused(norm_class: Any) -> None:
    torch.manual_seed(0)
    norm = norm_class(64, eps=1e-6).to(torch.bfloat16)
    nn.init.normal_(norm.weight)
    assert find_norms(nn.Sequential(norm)) == {}


def test_norms_on_cuda_take_two_kernels_and_compute_the_same(tmp_path: Path) -> None:
    batch = make_batch(9, 30, 4)
    with emulate_cuda():
        fused = load_backend(tmp_path / "fused", "embedder: qwen3")
        plain = load_backend(tmp_path / "plain", "embedder: qwen3", model_warmup=False)
        outputs, kernels = zip(*(run(each, batch) for each in (fused, plain)), strict=True)
    num_norms = count_modules(fused, FusedNorm)
    assert num_norms == 13
    assert count_modules(plain, FusedNorm) == 0
    # Two norms of the last layer are computed twice: for the keys of all tokens, and for the pooled ones.
    assert kernels[0].count("rms_norm") == num_norms + 2
    assert len(kernels[1]) - len(kernels[0]) == 6 * (num_norms + 2)
    assert np.array_equal(*outputs)


def test_norms_on_a_cpu_are_kept(tmp_path: Path) -> None:
    assert count_modules(load_backend(tmp_path, "embedder: qwen3", device="cpu"), FusedNorm) == 0


def test_fused_norms_that_change_decisions_are_taken_out_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    forward = FusedNorm.forward

    def differ(norm: FusedNorm, hidden: Tensor) -> Tensor:
        return forward(norm, hidden) + hidden.flip(-1)

    backend = load_backend(tmp_path, "embedder: qwen3", device="cpu", model_warmup=False)
    batch = make_batch(3, 20, 9, 14, 5, 31, 7, 12)
    expected = backend.launch(batch).result()["dense"]
    monkeypatch.setattr(fused_norms, "_is_plain", lambda norm: True)
    monkeypatch.setattr(FusedNorm, "forward", differ)
    assert not fuse_norms(backend, [batch], score)
    assert "norms are not fused, because the output" in caplog.text
    assert count_modules(backend, FusedNorm) == 0
    assert np.array_equal(backend.launch(batch).result()["dense"], expected)
