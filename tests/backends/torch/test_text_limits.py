"""The number of positions in the networks of transformers."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig, AutoModel, CLIPConfig, CLIPModel

from infinity_emb.backends.torch.text_limits import count_positions
from tests.support.small_models import ARCHITECTURES

pytestmark = pytest.mark.model

# Of 320, without the two that RoBERTa and MPNet leave out for their padding token, whose id is 1.
AFTER_PADDING = 318


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [
        ("bert", 320),
        ("distilbert", 320),
        ("electra", 320),
        ("albert", 320),
        ("roberta", AFTER_PADDING),
        ("xlm-roberta", AFTER_PADDING),
        ("mpnet", AFTER_PADDING),
        ("modernbert", None),
        ("nomic_bert", None),
        ("qwen3", None),
        ("gemma3_text", None),
        ("t5", None),
    ],
)
def test_texts_have_as_many_tokens_as_the_table_has_rows_for(model_type: str, expected: int | None) -> None:
    config = AutoConfig.for_model(model_type, **ARCHITECTURES[model_type])
    assert count_positions(AutoModel.from_config(config)) == expected


@pytest.mark.parametrize(
    ("model_type", "values"),
    [
        ("gpt2", {"n_positions": 64, "n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 50}),
        ("opt", {"max_position_embeddings": 64, "hidden_size": 32, "num_attention_heads": 2}),
        ("camembert", {"max_position_embeddings": 66, "hidden_size": 32, "num_attention_heads": 2}),
    ],
)
def test_offsets_of_further_networks_are_known(model_type: str, values: dict[str, Any]) -> None:
    sizes = {"num_hidden_layers": 1, "vocab_size": 50, "word_embed_proj_dim": 32}
    config = AutoConfig.for_model(model_type, **(sizes | {"pad_token_id": 1} | values))
    assert count_positions(AutoModel.from_config(config)) == 64


def test_positions_of_images_do_not_limit_texts() -> None:
    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    }
    text = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
    }
    network = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    assert count_positions(network) == 77
