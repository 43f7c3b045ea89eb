"""The time of a network's matrix products alone is measured as its layers compute them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from infinity_emb.backends.torch import network_timer, onednn_products
from infinity_emb.backends.torch.network_timer import TorchNetworkTimer
from tests.support.fused_models import load_backend, make_batch

pytestmark = [pytest.mark.model, pytest.mark.filterwarnings("ignore")]


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
@pytest.mark.parametrize("is_faster", [True, False])
def test_products_are_timed_with_the_library_that_layers_use(
    is_faster: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onednn_products, "is_faster", lambda: is_faster)
    backend = load_backend(tmp_path, "embedder: bert", device="cpu", model_warmup=False)
    timer = TorchNetworkTimer(backend)
    with timer.recording():
        backend.launch(make_batch(9, 12)).result()
    used: set[str] = set()

    def multiply_by_onednn(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        used.add("oneDNN")
        return linear(hidden, weight, bias)

    def multiply_by_torch(hidden: Tensor, weight: Tensor) -> Tensor:
        used.add("torch")
        return linear(hidden, weight)

    monkeypatch.setattr(onednn_products, "multiply", multiply_by_onednn)
    monkeypatch.setattr(network_timer, "linear", multiply_by_torch)
    assert timer.time_products()
    assert used == {"oneDNN" if is_faster else "torch"}
