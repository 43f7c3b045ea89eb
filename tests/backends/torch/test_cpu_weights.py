"""Linear layers' weights lie in memory as a CPU multiplies few rows fastest, and keep their values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SparseEncoder
from torch import nn

from infinity_emb.backends.torch.cpu_weights import store_input_major
from infinity_emb.backends.torch.st_introspection import find_transformers
from tests.support.model_kinds import list_kinds

pytestmark = [
    pytest.mark.model,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="weights stay as they are without MKL"),
]

KIND = "sparse: bert, max, relu"  # its head shares its weight with the embedding of words


def load_network(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    model = SparseEncoder(str(folder), device="cpu", model_kwargs={"dtype": dtype})
    return model, find_transformers(model)[0].model


def get_linear_layers(network: Any) -> list[nn.Linear]:
    return [module for module in network.bert.modules() if isinstance(module, nn.Linear)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return list_kinds()[KIND].save(tmp_path)


def test_weights_keep_their_shapes_and_values(folder: Path) -> None:
    (model, network), (_, loaded) = load_network(folder), load_network(folder)
    store_input_major(model)
    torch.testing.assert_close(network.state_dict(), loaded.state_dict(), rtol=0, atol=0)


def test_weights_of_linear_layers_are_stored_by_input(folder: Path) -> None:
    model, network = load_network(folder)
    store_input_major(model)
    layers = get_linear_layers(network)
    assert layers
    assert all(layer.weight.t().is_contiguous() for layer in layers)


def test_a_weight_shared_with_an_embedding_is_left_alone(folder: Path) -> None:
    model, network = load_network(folder)
    store_input_major(model)
    words = network.get_input_embeddings().weight
    assert network.get_output_embeddings().weight is words
    assert words.is_contiguous()


def test_half_precision_is_left_alone(folder: Path) -> None:
    model, network = load_network(folder, torch.bfloat16)
    store_input_major(model)
    assert all(layer.weight.is_contiguous() for layer in get_linear_layers(network))
