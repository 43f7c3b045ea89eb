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
        not_fused, eager, compiled = (
            roofline.estimate(roofline.launch(backend, LENGTHS), LENGTHS, num_compiled)
            for _, num_compiled in roofline.choose_ways(backend)
        )
    assert not_fused["launches"] - eager["launches"] == NUM_LAYERS, "GELU within products"
    assert eager["launches"] - compiled["launches"] == 2 * NUM_LAYERS
    assert compiled["TFLOP"] == eager["TFLOP"] == not_fused["TFLOP"]
    saved_bytes = round((eager["GB"] - compiled["GB"]) * 1e9)
    assert saved_bytes == 2 * NUM_LAYERS * 2 * 2 * TOKENS * HIDDEN


@pytest.mark.parametrize("model_type", ["qwen3", "modernbert"])
def test_a_compiled_layer_that_adds_within_products_copies_nothing(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of seven passes over hidden states after products, those of a norm remain."""
    from benchmarks import roofline
    from infinity_emb.backends.torch import fused_products

    sizes = SIZES | {"num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0}
    monkeypatch.setitem(roofline.MODELS, "small", (model_type, sizes, "mean"))
    rows: list[dict[str, float]] = []
    for is_fused in (False, True):
        if not is_fused:
            monkeypatch.setattr(fused_products, "find_layers", lambda network: {})
        with emulate_cuda(has_numbers=False):
            backend = roofline.build_backend("small")
            *_, compiled = (
                roofline.estimate(roofline.launch(backend, LENGTHS), LENGTHS, num_compiled)
                for _, num_compiled in roofline.choose_ways(backend)
            )
        rows.append(compiled)
        monkeypatch.undo()
        monkeypatch.setitem(roofline.MODELS, "small", (model_type, sizes, "mean"))
    assert rows[1]["TFLOP"] == rows[0]["TFLOP"]
    assert rows[0]["launches"] - rows[1]["launches"] == NUM_LAYERS
    # The products read the residual instead, twice.
    saved_bytes = round((rows[0]["GB"] - rows[1]["GB"]) * 1e9)
    assert saved_bytes == pytest.approx((5 - 2) * NUM_LAYERS * 2 * TOKENS * HIDDEN, rel=0.05)


def test_queries_and_keys_are_counted_by_their_window() -> None:
    from benchmarks.roofline import count_pairs

    assert count_pairs(5, 5, -1, -1) == 25
    assert count_pairs(5, 5, -1, 0) == 15, "causal"
    assert count_pairs(5, 5, 1, 1) == 13
    assert count_pairs(5, 5, 1, 0) == 9
    assert [count_pairs(5, 1, -1, right) for right in (-1, 0)] == [5, 5], "of the last token"


def test_the_last_layer_of_a_decoder_multiplies_most_for_one_token_per_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two tokens of 128 have queries. Their keys and values are computed a second time, unless compiled."""
    from benchmarks import roofline

    num_heads, num_key_heads, head_dim = SIZES["num_attention_heads"], 2, 16
    sizes = SIZES | {"num_key_value_heads": num_key_heads, "head_dim": head_dim}
    flop: dict[str, dict[str, float]] = {}
    for pooling in ("mean", "lasttoken"):
        monkeypatch.setitem(roofline.MODELS, "small", ("qwen3", sizes, pooling))
        with emulate_cuda(has_numbers=False):
            backend = roofline.build_backend("small")
            flop[pooling] = {
                way: roofline.estimate(roofline.launch(backend, LENGTHS), LENGTHS, num_compiled)["TFLOP"]
                * 1e12
                for way, num_compiled in roofline.choose_ways(backend)
            }
    num_texts = len(LENGTHS)
    weights = 2 * HIDDEN * num_heads * head_dim + 3 * HIDDEN * INNER
    pairs = sum(length * (length + 1) // 2 for length in LENGTHS) - TOKENS
    saved = 2 * (TOKENS - num_texts) * weights + 4 * pairs * num_heads * head_dim
    again = 2 * num_texts * 2 * HIDDEN * num_key_heads * head_dim
    found = {way: flop["mean"][way] - flop["lasttoken"][way] for way in flop["mean"]}
    expected = {"not fused": saved - again, "eager": saved - again, "compiled": saved}
    assert found == pytest.approx(expected)
