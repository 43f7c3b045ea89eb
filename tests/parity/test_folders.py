"""Every way in which a sentence-transformers embedder lies on disk, old and new."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from infinity_emb.errors import StartupError
from tests.parity import references
from tests.parity.conftest import Serve
from tests.parity.references import assert_served_alike, copied, load_embedder
from tests.parity.serving import LONG, assert_same_vectors
from tests.support.small_models import (
    HIDDEN_SIZE,
    save_network,
)

pytestmark = pytest.mark.model

TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'system' %}word100 {% else %}word101 {% endif %}"
    "{{ message.content if message.content is string else message.content[0].text }} "
    "{% endfor %}word103 word104"
)


def rewrite(path: Path, **changes: Any) -> None:
    """Set some keys of a JSON file; None takes one out."""
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "packages",
    [
        ["sentence_transformers.models"] * 3,
        [
            "sentence_transformers.base.modules.transformer",
            "sentence_transformers.sentence_transformer.modules.pooling",
            "sentence_transformers.sentence_transformer.modules.normalize",
        ],
        [
            "sentence_transformers.base.modules.transformer",
            "sentence_transformers.sentence_transformer.modules.pooling",
            "sentence_transformers.base.modules.normalize",
        ],
    ],
    ids=["before 5.4", "5.4", "6"],
)
def test_module_paths_of_every_generation(
    packages: list[str], bert: Path, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    path = copied(bert, tmp_path / "model")
    modules = json.loads((path / "modules.json").read_text())
    for module, package in zip(modules, packages, strict=True):
        module["type"] = f"{package}.{module['type'].rpartition('.')[2]}"
    (path / "modules.json").write_text(json.dumps(modules))
    assert_served_alike(serve, path, texts[:8])


@pytest.mark.parametrize(
    ("switches", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": True}, "mean + lasttoken"),
        ({}, "mean"),
    ],
)
def test_pooling_configs_of_switches(
    switches: dict[str, bool], expected: str, bert: Path, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    path = copied(bert, tmp_path / "model")
    config = {"word_embedding_dimension": HIDDEN_SIZE} | switches
    (path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    assert assert_served_alike(serve, path, texts[:8]).engine.info.pooling == expected


def test_old_folders_keep_limits_and_lower_case_in_a_file_of_their_own(
    bert: Path, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    path = copied(bert, tmp_path / "model")
    (path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12, "do_lower_case": True}))
    served = assert_served_alike(serve, path, [*texts[:8], "WORD5 Word6 word7"])
    assert served.engine.info.max_tokens == 12
    shouted = served.embed([texts[4].upper()[:40], texts[4][:40]])
    assert np.abs(shouted[0] - shouted[1]).max() <= 1e-6


def test_the_oldest_folders_keep_the_transformer_in_a_folder_of_its_own(
    bert: Path, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    path = copied(bert, tmp_path / "model")
    (path / "0_Transformer").mkdir()
    for file in path.iterdir():
        if file.is_file() and file.name not in ("modules.json", "config_sentence_transformers.json"):
            file.rename(path / "0_Transformer" / file.name)
    modules = json.loads((path / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (path / "modules.json").write_text(json.dumps(modules))
    assert_served_alike(serve, path, texts[:8])


@pytest.mark.parametrize("options", [{"add_special_tokens": False}, {"max_length": 15}], ids=str)
def test_a_transformer_that_calls_its_tokenizer_in_a_way_of_its_own(
    options: dict[str, Any], bert: Path, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    """Then the model's own preprocessing reads the texts."""
    path = copied(bert, tmp_path / "model")
    rewrite(path / "sentence_bert_config.json", processing_kwargs={"text": options})
    assert_served_alike(serve, path, [*texts[:8], LONG], reads_tokens=False)


def test_a_tokenizer_that_cuts_on_the_left(
    bert: Path, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    path = copied(bert, tmp_path / "model")
    rewrite(path / "tokenizer_config.json", truncation_side="left")
    served = assert_served_alike(serve, path, [*texts[:8], LONG])
    assert served.engine.info.truncation_side == "left"


def test_a_dimension_that_the_config_asks_for(
    bert: Path, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    path = copied(bert, tmp_path / "model")
    rewrite(path / "config_sentence_transformers.json", truncate_dim=12)
    served = assert_served_alike(serve, path, texts[:8])
    assert served.engine.info.embedding_dimension == 12
    assert served.embed(texts[:2], dimensions=5).shape == (2, 5)


@pytest.mark.parametrize(("model_type", "attention"), [("bert", "packed"), ("mpnet", "padded")])
def test_a_bare_encoder_is_pooled_by_the_mean(
    model_type: str, attention: str, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    path = save_network(tmp_path / "model", model_type)
    served = assert_served_alike(serve, path, [*texts[:8], LONG], attention=attention)
    assert served.engine.info.pooling == "mean"


@pytest.mark.parametrize("template", [None, TEMPLATE], ids=["plain", "chat"])
def test_a_bare_language_model_is_pooled_by_its_last_token(
    template: str | None, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    path = save_network(tmp_path / "model", "qwen3", AutoModelForCausalLM)
    if template is not None:
        (path / "chat_template.jinja").write_text(template)
    served = assert_served_alike(serve, path, [*texts[:8], LONG, ""])
    assert served.engine.info.pooling == "lasttoken"
    prompted = references.vectors(load_embedder(path).encode, texts[:8], prompt="word7 word8 ")
    assert_same_vectors(served.embed(texts[:8], prompt="word7 word8 "), prompted)


@pytest.mark.parametrize("name", ["möbel", "a b'c\n\"d"])
def test_a_folder_of_any_name(name: str, bert: Path, serve: Serve, texts: list[str], tmp_path: Path) -> None:
    assert_served_alike(serve, copied(bert, tmp_path / name), texts[:4])


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_folder_whose_name_is_not_utf8_is_refused_with_a_way_out(
    bert: Path, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    """safetensors does not open it, so that sentence-transformers cannot serve it either."""
    path = copied(bert, tmp_path / os.fsdecode(b"m\xff\xfe"))
    with pytest.raises(StartupError, match=r"is not UTF-8.*rename the folder, or give a link"):
        serve(path)
    (tmp_path / "link").symlink_to(path)
    assert_served_alike(serve, tmp_path / "link", texts[:4])


def test_the_oldest_folders_have_their_vocabulary_in_a_text_file(
    bert: Path, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    path = copied(bert, tmp_path / "model")
    words = json.loads((path / "tokenizer.json").read_text())["model"]["vocab"]
    (path / "vocab.txt").write_text("\n".join(sorted(words, key=words.__getitem__)) + "\n")
    (path / "tokenizer.json").unlink()
    rewrite(
        path / "tokenizer_config.json", tokenizer_class="BertTokenizer", model_max_length=None, max_len=20
    )
    assert_served_alike(serve, path, [*texts[:4], LONG])
