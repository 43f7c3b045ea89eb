"""Tokenizers with tokens that were added without an embedding in the network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infinity_emb.errors import BadInput
from tests.parity import references
from tests.parity.conftest import Serve
from tests.parity.references import load_embedder
from tests.parity.serving import LONG, assert_same_vectors
from tests.support.small_models import VOCABULARY_SIZE, save_small_model
from tests.support.small_models.changes import drop_padding_token, rewrite_json

pytestmark = pytest.mark.model


def add_token(path: Path, name: str, token_id: int, *, is_special: bool) -> None:
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = {"id": token_id, "content": name, "special": is_special, **flags}
    rewrite_json(path / "tokenizer.json", added_tokens=[*tokenizer["added_tokens"], added])


@pytest.mark.parametrize("is_special", [True, False])
def test_a_text_with_a_token_that_has_no_embedding_is_refused(
    is_special: bool, serve: Serve, texts: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It was an error of the server, and on CUDA its end."""
    path = save_small_model(tmp_path, "roberta")
    add_token(path, "[NEW]", VOCABULARY_SIZE, is_special=is_special)
    served = serve(path)
    assert "has 1 tokens that the network has no embedding for, such as '[NEW]' (512)" in caplog.text
    with pytest.raises(BadInput, match=r"input 1 has the token id 512.*embeddings for 0 to 511"):
        served.embed([texts[0], "word7 [NEW] word8"])
    assert_same_vectors(served.embed(texts[:8]), references.vectors(load_embedder(path).encode, texts[:8]))


@pytest.mark.parametrize("model_type", ["llama", "bert", "mpnet"])
@pytest.mark.parametrize("engine", ["torch", "optimum"])
def test_a_padding_token_without_an_embedding_is_not_used(
    model_type: str, engine: str, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    """Tokenizers of language models often have one, added by whoever trained them further."""
    path = save_small_model(tmp_path, model_type)
    expected = references.vectors(load_embedder(path).encode, inputs := [*texts[:8], LONG, "word7"])
    drop_padding_token(path)
    add_token(path, "<PAD>", VOCABULARY_SIZE, is_special=True)
    rewrite_json(path / "tokenizer_config.json", pad_token="<PAD>")
    served = serve(path, engine=engine)
    assert_same_vectors(served.embed(inputs), expected)
