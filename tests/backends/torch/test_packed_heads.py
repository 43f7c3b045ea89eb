"""A head gets the hidden states of the tokens that it reads; all else passes through its wrapper."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from infinity_emb.backends.torch.packed_heads import PackedBase, PackedSequences, unwrap_base, wrap_base

GATHER = torch.tensor([[0], [2]])


class Network(torch.nn.Module):
    """Its hidden state of a token is twice its id."""

    hidden_size = 1

    def __init__(self, pooler: torch.nn.Module | None = None) -> None:
        super().__init__()
        self.pooler = pooler

    def forward(self, input_ids: Tensor, **kwargs: Any) -> Any:
        return SimpleNamespace(last_hidden_state=2.0 * input_ids[..., None])


class FirstToken(torch.nn.Module):
    def forward(self, hidden: Tensor) -> Tensor:
        return hidden[:, 0] + 1


def compute_packed(network: Network, *, pooled: Tensor | None = None) -> Any:
    """Compute three tokens, or those that the last layer has left of them."""
    features: dict[str, Any] = {
        "input_ids": torch.tensor([[1, 2, 3]]),
        "packed_layout": SimpleNamespace(pooled=pooled),
    }
    if pooled is not None:
        features["input_ids"] = features["input_ids"][:, pooled]
    sequences = PackedSequences(features, GATHER)
    return PackedBase(network)(input_ids=torch.zeros(2, 1), packed_sequences=sequences)


def test_the_head_gets_the_hidden_states_of_the_gathered_tokens() -> None:
    output = compute_packed(Network())
    assert output.last_hidden_state.tolist() == [[[2.0]], [[6.0]]]


def test_tokens_that_the_last_layer_computes_alone_are_not_gathered_again() -> None:
    output = compute_packed(Network(), pooled=GATHER[:, 0])
    assert output.last_hidden_state.tolist() == [[[2.0]], [[6.0]]]


def test_each_sequence_is_pooled() -> None:
    assert compute_packed(Network(FirstToken())).pooler_output.tolist() == [[3.0], [7.0]]


def test_a_linear_pooler_is_followed_by_the_activation_of_the_network() -> None:
    linear = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(linear.weight, -1)
    torch.nn.init.zeros_(linear.bias)
    network = Network(linear)
    network.pooler_activation = torch.nn.ReLU()
    assert compute_packed(network).pooler_output.tolist() == [[0.0], [0.0]]


def test_inputs_that_are_not_packed_pass_through() -> None:
    wrapped = PackedBase(Network())
    assert wrapped(torch.tensor([[4]])).last_hidden_state.tolist() == [[[8.0]]]
    assert wrapped.hidden_size == 1


class Model(torch.nn.Module):
    def __init__(self, prefix: str) -> None:
        super().__init__()
        self.base_model_prefix = prefix
        self.bert = Network()


def test_a_network_is_wrapped_once_and_unwrapped() -> None:
    model: Any = Model("bert")
    network = model.bert
    assert wrap_base(model)
    assert wrap_base(model), "a second time does nothing"
    assert model.bert.network is network
    unwrap_base(model)
    assert model.bert is network
    unwrap_base(model)
    assert model.bert is network


def test_a_network_without_a_name_cannot_be_wrapped() -> None:
    for prefix in ("", "roberta"):
        model: Any = Model(prefix)
        assert not wrap_base(model)
        unwrap_base(model)
