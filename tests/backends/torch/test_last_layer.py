"""The last layer computes only the tokens that are read, and outputs stay the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infinity_emb.backends.base import LoadedModel
from infinity_emb.backends.torch import last_layer, packing
from infinity_emb.backends.torch.backend import TorchBackend
from infinity_emb.backends.torch.input_layout import InputLayout
from infinity_emb.backends.torch.packed_attention import grouped_attention
from infinity_emb.backends.torch.packed_layout import PackedLayout, PooledRows, find_equal_runs
from infinity_emb.backends.torch.st_introspection import find_transformers
from infinity_emb.items import Encoded, InputOptions, number_inputs
from tests.support.accelerated_models import get_backend, load_folder
from tests.support.model_kinds import list_kinds
from tests.support.small_models.embedders import save_small_model

pytestmark = [pytest.mark.model, pytest.mark.filterwarnings("ignore")]

KINDS = list_kinds()


def load(kind: str, folder: Path) -> LoadedModel:
    return load_folder(KINDS[kind].save(folder), device="cpu", model_warmup=False)


def encode(model: LoadedModel, kind: str, **options: Any) -> list[Encoded]:
    return model.encode(number_inputs(KINDS[kind].list_inputs()[0]), InputOptions(**options))


def watch_last_layer(model: LoadedModel) -> list[int]:
    """Return the numbers of tokens for which the last layer computes an output."""
    (transformer,) = find_transformers(get_backend(model).torch_model.model)
    layer = last_layer._find_last_layer(transformer.model)
    assert layer is not None
    widths: list[int] = []

    def note(module: Any, args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        widths.append(hidden.shape[1])

    layer.register_forward_hook(note)
    return widths


@pytest.mark.parametrize(
    "kind",
    [
        *("pooling: cls", "pooling: lasttoken", "reranker: bert", "reranker: distilbert"),
        *("classifier: electra", "embedder: qwen2", "embedder: qwen3", "embedder: llama"),
        *("embedder: mistral", "embedder: gemma3_text", "pooling: cls, modernbert"),
        *("reranker: modernbert of four layers", "yes or no: qwen3"),
    ],
)
def test_the_last_layer_computes_one_token_per_text_and_outputs_stay(kind: str, tmp_path: Path) -> None:
    model = load(kind, tmp_path)
    backend = get_backend(model)
    widths = watch_last_layer(model)
    batch = encode(model, kind)
    found = backend.launch(batch).result()["dense"]
    assert widths == [len(batch)]

    layouts = {name: replace(each, pooled_token=None) for name, each in backend.torch_model.layouts.items()}
    full = TorchBackend(replace(backend.torch_model, layouts=layouts))
    expected = full.launch(batch).result()["dense"]
    assert widths[1] == sum(item.num_tokens for item in batch)
    assert np.abs(np.array(found) - np.array(expected)).max() <= 1e-6


def test_vectors_of_all_tokens_are_still_computed_where_they_are_asked_for(tmp_path: Path) -> None:
    model = load("pooling: cls", tmp_path)
    widths = watch_last_layer(model)
    batch = encode(model, "pooling: cls", outputs=("tokens",))
    tokens = get_backend(model).launch(batch).result()["tokens"]
    assert [len(each) for each in tokens] == [item.num_tokens for item in batch]
    assert widths == [sum(item.num_tokens for item in batch)]


@pytest.mark.parametrize(
    "kind",
    ["pooling: mean", "embedder: albert", "embedder: gpt2", "reranker: modernbert", "reranker: qwen3", "M3"],
)
def test_models_that_read_more_or_have_other_layers_keep_all_tokens(kind: str, tmp_path: Path) -> None:
    """ALBERT's layers are one layer, and GPT-2's join their projections. ModernBERT's last layer is local
    here, and the head of Qwen3 may read a token before the last. M3 has vectors of tokens."""
    layouts = get_backend(load(kind, tmp_path)).torch_model.layouts.values()
    assert [each.pooled_token for each in layouts] == [None] * len(layouts)


@pytest.mark.parametrize("model_type", ["smollm3", "olmo"])
def test_a_last_layer_with_other_keys_or_values_keeps_all_tokens(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the vectors were compared, with a tolerance that is wide enough for some wrong keys.

    SmolLM3 does not rotate the keys of some layers, and OLMo clips keys and values that are large."""
    monkeypatch.setattr(packing, "get_tolerance", lambda model: 1.0)
    folder = save_small_model(tmp_path, model_type, pooling_mode="lasttoken")
    backend = get_backend(load_folder(folder, device="cpu", model_warmup=False))
    (layout,) = backend.torch_model.layouts.values()
    assert (layout.form, layout.pooled_token) == ("packed", None)


def test_pooled_rows_are_refused_where_a_token_does_not_attend_to_its_whole_text() -> None:
    states = torch.zeros(1, 2, 1, 4)
    rows = PooledRows(
        torch.tensor([2]),
        torch.tensor([0, 1], dtype=torch.int32),
        key=torch.zeros(1, 3, 8),
        value=torch.zeros(1, 3, 8),
    )
    layout = PackedLayout(find_equal_runs([3]), torch.tensor([0, 3], dtype=torch.int32), 3, rows)
    for options in ({"is_causal": True}, {"sliding_window": 2}):
        with pytest.raises(NotImplementedError, match="only last tokens can be pooled"):
            grouped_attention(
                torch.nn.Module(), states, states, states, None, packed_layout=layout, **options
            )


def test_installing_twice_hooks_once_and_can_be_undone(tmp_path: Path) -> None:
    (transformer,) = find_transformers(get_backend(load("pooling: cls", tmp_path)).torch_model.model)
    network = transformer.model
    layer = last_layer._find_last_layer(network)
    assert layer is not None
    last_layer.install(network)
    assert len(layer._forward_pre_hooks) == 1
    last_layer.uninstall(network)
    assert not layer._forward_pre_hooks
    last_layer.uninstall(torch.nn.Linear(2, 2))


def test_a_network_without_known_layers_has_no_pooled_token(tmp_path: Path) -> None:
    model = get_backend(load("pooling: cls", tmp_path)).torch_model.model
    layout = InputLayout(form="packed")
    assert last_layer.find_pooled_token(model, torch.nn.Linear(2, 2), layout) is None
