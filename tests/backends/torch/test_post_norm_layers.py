"""Layers of BERT and its relatives compute the same with fewer operators."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.models.bert.modeling_bert import BertLayer

from infinity_emb.backends.torch import packed_attention, post_norm_layers
from infinity_emb.backends.torch.input_layout import get_first_position
from infinity_emb.backends.torch.packed_layout import PackedLayout, find_equal_runs
from infinity_emb.backends.torch.post_norm_layers import PostNormLayer

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 60,
}
LENGTHS = [3, 7, 7, 11]


def make_network(model_type: str, **options: Any) -> Any:
    torch.manual_seed(0)
    if model_type == "distilbert":
        options |= {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
    network = AutoModel.from_config(AutoConfig.for_model(model_type, **SIZES, **options)).eval()
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight.normal_(1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0, 0.2)
    packed_attention.register()
    network.set_attn_implementation(packed_attention.GROUPED)
    return network


def fuse(network: nn.Module) -> list[PostNormLayer]:
    post_norm_layers.install(network)
    return [layer for layer in network.modules() if isinstance(layer, PostNormLayer)]


def make_ids() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(5, 60, (1, length), generator=generator) for length in LENGTHS]


def compute_packed(network: Any) -> Tensor:
    """Return the hidden states of all texts in one packed batch, (T, H)."""
    starts = torch.tensor([0, *LENGTHS]).cumsum(0).to(torch.int32)
    first = get_first_position(network)
    position_ids = torch.cat([torch.arange(first, first + length) for length in LENGTHS])[None]
    layout = PackedLayout(find_equal_runs(LENGTHS), starts, max(LENGTHS))
    with torch.inference_mode():
        output = network(input_ids=torch.cat(make_ids(), 1), position_ids=position_ids, packed_layout=layout)
    states: Tensor = output.last_hidden_state[0]
    return states


def compute_alone(network: Any) -> Tensor:
    """Return the same from one call per text, without packing."""
    with torch.inference_mode():
        return torch.cat([network(input_ids=ids).last_hidden_state[0] for ids in make_ids()])


@pytest.mark.parametrize(
    "model_type", ["bert", "roberta", "xlm-roberta", "electra", "camembert", "ernie", "distilbert"]
)
def test_a_packed_batch_gives_the_hidden_states_of_transformers(model_type: str) -> None:
    network = make_network(model_type)
    expected = compute_alone(network)
    assert len(fuse(network)) == 2
    assert (compute_packed(network) - expected).abs().max() <= 2e-6 * expected.abs().max()


@pytest.mark.parametrize("activation", ["gelu", "gelu_python", "gelu_new", "relu", "silu", "tanh"])
def test_every_activation_is_computed(activation: str) -> None:
    network = make_network("bert", hidden_act=activation)
    expected = compute_alone(network)
    assert len(fuse(network)) == 2
    assert (compute_packed(network) - expected).abs().max() <= 2e-6 * expected.abs().max()


def test_inputs_of_a_layer_are_not_changed() -> None:
    """A residual is the input of other layers as well, for example where hidden states are kept."""
    (layer, *_) = fuse(make_network("bert"))
    hidden = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    before = hidden.clone()
    layout = PackedLayout(find_equal_runs([5]), torch.tensor([0, 5], dtype=torch.int32), 5)
    with torch.inference_mode():
        layer(hidden, None, packed_layout=layout)
    assert torch.equal(hidden, before)


def test_a_padded_batch_is_computed_by_the_original_layer() -> None:
    network = make_network("bert")
    expected = compute_alone(network)
    fuse(network)
    assert torch.equal(compute_alone(network), expected)


def test_a_copy_has_weights_of_its_own() -> None:
    network = make_network("bert")
    fuse(network)
    expected = compute_packed(network)
    copied = copy.deepcopy(network)
    with torch.no_grad():
        for weight in network.parameters():
            weight.zero_()
    assert torch.equal(compute_packed(copied), expected)


def test_uninstalling_restores_the_layers() -> None:
    network = make_network("bert")
    before = network.state_dict().keys()
    fuse(network)
    assert network.state_dict().keys() == before
    assert fuse(network) == fuse(network), "installed twice"
    post_norm_layers.uninstall(network)
    assert {type(layer) for layer in network.encoder.layer} == {BertLayer}


def test_modules_with_hooks_are_called() -> None:
    """`profile` counts the products of linear layers this way."""
    network = make_network("bert")
    layers = fuse(network)
    widths: list[int] = []
    handle = layers[0].fused_parts.widened.register_forward_hook(
        lambda module, args, output: widths.append(output.shape[-1])
    )
    compute_packed(network)
    assert widths == [48]
    handle.remove()
    compute_packed(network)
    assert widths == [48]


class ScaledLayer(BertLayer):
    """A layer of a repository's own code, with the names of BERT's parts and another result."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return twice what BERT returns."""
        return super().forward(*args, **kwargs) * 2


ScaledLayer.__name__ = BertLayer.__name__


class OtherLinear(nn.Linear):
    """A linear layer with an adapter."""


def use_other_forward(network: Any) -> None:
    for layer in network.encoder.layer:
        layer.__class__ = ScaledLayer


def use_other_linear(network: Any) -> None:
    for layer in network.encoder.layer:
        layer.intermediate.dense.__class__ = OtherLinear


def add_hook(network: Any) -> None:
    for layer in network.encoder.layer:
        layer.output.register_forward_hook(lambda module, args, output: output * 2)


def use_half(network: Any) -> None:
    network.to(torch.bfloat16)


@pytest.mark.parametrize("change", [use_other_forward, use_other_linear, add_hook, use_half])
def test_layers_that_compute_something_else_are_left(change: Callable[[Any], None]) -> None:
    network = make_network("bert")
    change(network)
    assert fuse(network) == []


@pytest.mark.parametrize("model_type", ["esm", "roformer", "albert", "roberta-prelayernorm", "mpnet"])
def test_other_kinds_of_layers_are_left(model_type: str) -> None:
    """RoFormer and ESM have BERT's names, but rotate their keys or normalize before a sum."""
    network = make_network(model_type, **({"pad_token_id": 1} if model_type == "esm" else {}))
    assert fuse(network) == []
