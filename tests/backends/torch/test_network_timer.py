"""The time of a network's matrix products alone is measured as its layers compute them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from infinity_emb.backends.torch import onednn_products
from infinity_emb.backends.torch.network_timer import TorchNetworkTimer
from tests.support.accelerated_models import load_backend, make_batch

pytestmark = [pytest.mark.model, pytest.mark.filterwarnings("ignore")]


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
@pytest.mark.parametrize("is_faster", [True, False])
def test_products_are_timed_with_the_library_that_layers_use(
    is_faster: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onednn_products, "is_onednn_faster", lambda: is_faster)
    monkeypatch.setattr(onednn_products, "MIN_WEIGHTS", 0)
    backend = load_backend(tmp_path, "embedder: bert", device="cpu", model_warmup=False)
    timer = TorchNetworkTimer(backend)
    with timer.recording():
        backend.launch(make_batch(9, 12)).result()
    used: set[str] = set()

    def record(library: str) -> Callable[[Tensor, Tensor, None], Tensor]:
        def compute(hidden: Tensor, weight: Tensor, bias: None) -> Tensor:
            used.add(library)
            return linear(hidden, weight, bias)

        return compute

    monkeypatch.setattr(onednn_products, "onednn_linear", record("oneDNN"))
    monkeypatch.setattr(onednn_products, "linear", record("torch"))
    assert timer.time_products()
    assert used == ({"oneDNN", "torch"} if is_faster else {"torch"})  # the pooler has a single row
