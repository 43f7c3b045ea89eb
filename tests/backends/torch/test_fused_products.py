"""Products that add residuals or compute GELU compute the same; only packed batches change in place."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear
from transformers import AutoConfig, AutoModel, PreTrainedModel

from benchmarks.gpu.emulated_cuda import Launch, emulate_cuda, record
from infinity_emb.backends.torch import cpu_threads, fused_products, onednn_products, packed_attention
from infinity_emb.backends.torch.eager_outputs import EagerOutputs
from infinity_emb.backends.torch.fused_products import (
    GeluLinear,
    PreNormLayer,
    find_activations,
    find_layers,
    fuse_products,
)
from infinity_emb.backends.torch.module_classes import set_classes
from infinity_emb.backends.torch.packed_layout import PackedLayout, find_equal_runs
from tests.support.accelerated_models import (
    count_modules,
    load_backend,
    make_batch,
    run,
    score,
    shorten_start,
)

pytestmark = [pytest.mark.model, pytest.mark.filterwarnings("ignore")]

from_config: Any = AutoModel.from_config  # it has no annotation
LENGTHS = [4, 4, 10]


@pytest.fixture(autouse=True)
def one_core(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Read few texts at start, capture no graphs, and keep the classes of products on a CPU."""
    shorten_start(monkeypatch)
    monkeypatch.setattr(onednn_products, "is_onednn_faster", lambda: False)
    with cpu_threads.one_core():
        yield


def build(model_type: str, dtype: torch.dtype = torch.float32, **options: Any) -> PreTrainedModel:
    """Build a network of three layers with random weights, the same on each call."""
    torch.manual_seed(0)
    packed_attention.register()
    config = AutoConfig.for_model(
        model_type, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, intermediate_size=96, vocab_size=100, pad_token_id=0, use_cache=False, **options,
    )  # fmt: skip
    network: PreTrainedModel = from_config(config).eval()
    for weight in network.parameters():
        if weight.dim() == 2:
            nn.init.normal_(weight, std=0.2)
    network.set_attn_implementation(packed_attention.GROUPED)
    network.to(dtype)
    return network


def compute(network: Any, **options: Any) -> Tensor:
    """Compute (1, T, H) float32 of a packed batch."""
    starts = [0, *np.cumsum(LENGTHS).tolist()]
    layout = PackedLayout(
        find_equal_runs(LENGTHS), torch.tensor(starts, dtype=torch.int32), max_length=max(LENGTHS)
    )
    position = torch.cat([torch.arange(end - start) for start, end in pairwise(starts)])[None]
    ids = torch.arange(starts[-1])[None] * 7 % 100
    with torch.inference_mode():
        outputs = network(input_ids=ids, position_ids=position, packed_layout=layout, **options)
    hidden: Tensor = outputs.last_hidden_state
    return hidden.float()


@pytest.mark.parametrize("model_type", ["qwen3", "qwen2", "llama", "mistral", "modernbert"])
def test_fused_layers_compute_the_same(model_type: str) -> None:
    network = build(model_type)
    expected = compute(network)
    replaced = set_classes(find_layers(network))
    assert sum(isinstance(module, PreNormLayer) for module in replaced) == 3
    assert (compute(network) - expected).abs().max() <= 1e-6 * expected.abs().max()
    set_classes(replaced)
    assert torch.equal(compute(network), expected)
    assert not any(isinstance(module, PreNormLayer) for module in network.modules())


@pytest.mark.parametrize("model_type", ["qwen3", "modernbert"])
def test_half_precision_is_as_near_to_float32_as_before(model_type: str) -> None:
    exact = compute(build(model_type, torch.bfloat16).float())
    network = build(model_type, torch.bfloat16)
    before = (compute(network) - exact).pow(2).mean().sqrt()
    set_classes(find_layers(network))
    after = (compute(network) - exact).pow(2).mean().sqrt()
    assert 0 < after <= 1.05 * before


def test_a_copy_of_a_fused_network_has_its_own_layers() -> None:
    network = build("qwen3")
    set_classes(find_layers(network))
    expected = compute(network)
    copied = copy.deepcopy(network)
    for weight in network.parameters():
        nn.init.zeros_(weight)
    assert torch.equal(compute(copied), expected)


def test_padded_batches_are_not_changed_in_place() -> None:
    network: Any = build("llama")
    layer = network.layers[0]
    hidden = torch.randn(2, 5, 64)
    kept = hidden.clone()
    options = {
        "attention_mask": None,
        "key_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
        "position_embeddings": network.rotary_emb(hidden, torch.arange(5)[None]),
    }
    with torch.inference_mode():
        expected = layer(hidden, **options)
        set_classes(find_layers(network))
        found = layer(hidden, **options)
    assert torch.equal(hidden, kept)
    assert torch.equal(found, expected)


def add_bias(network: Any) -> None:
    network.layers[0].mlp.down_proj.bias = nn.Parameter(torch.ones(64))


def subclass_product(network: Any) -> None:
    network.layers[0].self_attn.o_proj.__class__ = type("LoraLinear", (nn.Linear,), {})


def hook_layer(network: Any) -> None:
    network.layers[0].register_forward_hook(lambda *args: None)


def hook_product(network: Any) -> None:
    network.layers[0].self_attn.o_proj.register_forward_pre_hook(lambda *args: None)


@pytest.mark.parametrize("change", [add_bias, subclass_product, hook_layer, hook_product])
def test_a_layer_with_another_product_or_a_hook_is_kept(change: Callable[[Any], None]) -> None:
    network: Any = build("llama")
    change(network)
    found = find_layers(network)
    assert [layer for layer in network.layers if layer in found] == list(network.layers[1:])


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("granite", {"residual_multiplier": 0.22}),
        ("gemma3_text", {}),
        ("olmo2", {}),
        ("phi3", {"bos_token_id": 1, "eos_token_id": 2}),
        ("llama", {"attention_bias": True}),
        ("llama", {"output_hidden_states": True}),
    ],
)
def test_layers_that_compute_something_else_are_kept(model_type: str, options: dict[str, Any]) -> None:
    assert find_layers(build(model_type, **options)) == {}


@pytest.mark.parametrize(
    "kind",
    ["embedder: qwen3", "embedder: modernbert", "pooling: cls, modernbert",
     "reranker: modernbert of four layers"],
)  # fmt: skip
def test_on_cuda_two_products_a_layer_add_the_residual(kind: str, tmp_path: Path) -> None:
    batch = make_batch(9, 30, 4)
    with emulate_cuda():
        fused = load_backend(tmp_path / "fused", kind)
        plain = load_backend(tmp_path / "plain", kind, model_warmup=False)
        outputs, kernels = zip(*(run(each, batch) for each in (fused, plain)), strict=True)
        exact = np.asarray(plain.launch(batch, full_precision=True).result()["dense"])
    network: Any = fused.torch_model.model[0]
    num_layers = network.model.config.num_hidden_layers
    assert count_modules(fused, PreNormLayer) == num_layers
    assert kernels[0].count("addmm_") == 2 * num_layers
    assert kernels[1].count("linear") - kernels[0].count("linear") == 2 * num_layers
    assert kernels[1].count("add") - kernels[0].count("add") >= 2 * num_layers
    errors = [np.abs(each - exact).max() for each in outputs]
    assert errors[0] <= 1.5 * errors[1] + 1e-3


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_gelu_within_a_product_is_nearer_to_float64_than_of_rounded_values(scale: float) -> None:
    torch.manual_seed(0)
    product = nn.Linear(256, 128).to(torch.bfloat16)
    nn.init.normal_(product.weight, std=scale / 16)
    hidden = torch.randn(1, 500, 256).to(torch.bfloat16)
    exact = gelu(linear(hidden.double(), product.weight.double(), product.bias.double()))
    with emulate_cuda(), torch.inference_mode():
        moved = copy.deepcopy(product).to("cuda:0")
        before = gelu(moved(hidden.to("cuda:0"))).cpu()
        moved.__class__ = GeluLinear
        after = moved(hidden.to("cuda:0")).cpu()
    errors = [float((each.double() - exact).pow(2).mean().sqrt()) for each in (before, after)]
    assert after.shape == before.shape
    assert after.dtype == before.dtype
    assert 0 < errors[1] < errors[0]


@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlm-roberta", "electra", "mpnet"])
def test_a_float32_copy_of_a_network_with_fused_activations_is_exact(model_type: str) -> None:
    network: Any = build(model_type, torch.bfloat16)
    part = network.encoder.layer[0].intermediate
    hidden = torch.randn(1, 7, 64)
    expected = copy.deepcopy(part).float()(hidden)
    replaced = set_classes(find_activations(network))
    assert sum(isinstance(module, GeluLinear) for module in replaced) == 3
    assert torch.equal(copy.deepcopy(part).float()(hidden), expected)
    set_classes(replaced)
    assert len(find_activations(network)) == 6


def test_other_dtypes_and_activations_are_kept() -> None:
    assert find_activations(build("bert", torch.float16)) == {}
    assert find_activations(build("bert")) == {}
    assert find_activations(build("bert", torch.bfloat16, hidden_act="relu")) == {}
    assert find_activations(build("bert", torch.bfloat16, hidden_act="gelu_new")) == {}
    network: Any = build("bert", torch.bfloat16)
    network.encoder.layer[0].intermediate.dense.__class__ = type("LoraLinear", (nn.Linear,), {})
    assert len(find_activations(network)) == 4


def test_networks_with_several_towers_keep_their_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only outputs of texts are compared, not those of images or audio."""
    network: Any = build("bert", torch.bfloat16)
    assert find_activations(network)
    monkeypatch.setattr(type(network.config), "sub_configs", {"audio_config": object}, raising=False)
    assert find_activations(network) == {}


def test_on_cuda_each_layer_of_bert_has_a_kernel_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vectors of random weights are so similar that rounding changes their order."""
    monkeypatch.setattr(EagerOutputs, "find_objection", lambda *args: "")
    batch = make_batch(9, 30, 4)
    with emulate_cuda():
        fused = load_backend(tmp_path / "fused", "embedder: bert", dtype="bfloat16")
        plain = load_backend(tmp_path / "plain", "embedder: bert", dtype="bfloat16", model_warmup=False)
        outputs, kernels = zip(*(run(each, batch) for each in (fused, plain)), strict=True)
        exact = np.asarray(plain.launch(batch, full_precision=True).result()["dense"])
    network: Any = fused.torch_model.model[0]
    num_layers = network.model.config.num_hidden_layers
    assert kernels[0].count("_addmm_activation") == num_layers
    assert "gelu" not in kernels[0]
    assert len(kernels[1]) - len(kernels[0]) == num_layers
    errors = [np.abs(each - exact).max() for each in outputs]
    assert errors[0] <= 1.5 * errors[1]


def test_layers_on_a_cpu_are_kept(tmp_path: Path) -> None:
    assert count_modules(load_backend(tmp_path, "embedder: qwen3", device="cpu"), PreNormLayer) == 0


def test_fused_layers_that_change_decisions_are_taken_out_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    backend = load_backend(tmp_path, "embedder: qwen3", device="cpu", model_warmup=False)
    batch = make_batch(3, 20, 9, 14, 5, 31, 7, 12)
    expected = backend.launch(batch).result()["dense"]
    add = fused_products._add_product
    monkeypatch.setattr(
        fused_products, "_add_product", lambda *args, **options: add(*args, **options).flip(-1)
    )
    assert not fuse_products(backend, [batch], score)
    assert "nothing is computed within products, because the output" in caplog.text
    assert count_modules(backend, PreNormLayer) == 0
    assert np.array_equal(backend.launch(batch).result()["dense"], expected)


def test_fused_layers_that_cannot_be_computed_are_taken_out_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: Any, **options: Any) -> Tensor:
        raise NotImplementedError("no such kernel")

    backend = load_backend(tmp_path, "embedder: qwen3", device="cpu", model_warmup=False)
    batch = make_batch(3, 20, 9)
    expected = backend.launch(batch).result()["dense"]
    monkeypatch.setattr(fused_products, "_add_product", fail)
    assert not fuse_products(backend, [batch], score)
    assert "cannot be computed: no such kernel" in caplog.text
    assert np.array_equal(backend.launch(batch).result()["dense"], expected)


def test_kernels_of_the_operator_for_compiled_layers_add_in_place() -> None:
    residual, hidden, weight = torch.randn(1, 5, 8), torch.randn(1, 5, 3), torch.randn(8, 3)
    expected = residual + hidden @ weight.t()
    with emulate_cuda(), torch.inference_mode():
        moved = [each.to("cuda:0") for each in (residual, hidden, weight)]
        with record() as log:
            fused_products.add_product_as_operator(*moved)
        changed = moved[0].cpu()
    launches: list[Launch] = log.launches
    assert [each.name for each in launches] == ["add_product"]
    assert torch.allclose(changed, expected, atol=1e-6)
