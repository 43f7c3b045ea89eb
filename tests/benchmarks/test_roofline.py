"""The paper table prices the kernels that Inductor would fuse, without a GPU and without Triton."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.gpu.emulated_cuda import emulate_cuda
from infinity_emb.backends.torch import cpu_threads

pytestmark = [pytest.mark.model, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

LENGTHS = [100, 28]
TOKENS, HIDDEN, INNER = 128, 64, 256
NUM_LAYERS = 2
SIZES = {
    "vocab_size": 500, "hidden_size": HIDDEN, "num_hidden_layers": NUM_LAYERS, "num_attention_heads": 4,
    "intermediate_size": INNER,
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_core() -> Iterator[None]:
    with cpu_threads.one_core():
        yield


def test_compiled_layers_of_bert_move_less_and_multiply_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Residual and norm become one kernel, which need not write their sum: two passes over it less."""
    from benchmarks import roofline  # imports Inductor, which warns of a deprecation

    monkeypatch.setitem(roofline.MODELS, "small", ("bert", SIZES, "mean"))
    with emulate_cuda(has_numbers=False):
        backend = roofline.build_backend("small")
        eager, compiled = (
            roofline.estimate(roofline.launch(backend, LENGTHS), LENGTHS, num_compiled)
            for _, num_compiled in roofline.choose_ways(backend)
        )
    assert eager["launches"] - compiled["launches"] == 2 * NUM_LAYERS
    assert compiled["TFLOP"] == eager["TFLOP"]
    saved_bytes = round((eager["GB"] - compiled["GB"]) * 1e9)
    assert saved_bytes == 2 * NUM_LAYERS * 2 * 2 * TOKENS * HIDDEN
