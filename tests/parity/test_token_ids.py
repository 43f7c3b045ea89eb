"""Ids of the model's own vocabulary: the vectors of the texts that they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from infinity_emb.backends.torch.encoders import ProcessorEncoder
from infinity_emb.errors import BadInput
from infinity_emb.items import InputOptions, TokenIdsInput, number_inputs
from tests.parity import references
from tests.parity.conftest import Serve
from tests.parity.references import load_embedder, load_late_interaction
from tests.parity.serving import assert_same_vectors
from tests.support.small_models import (
    make_tokenizer,
    save_pipeline,
    save_small_late_interaction,
    save_small_model,
)

pytestmark = pytest.mark.model


def ids_of(model: Any, texts: list[str]) -> list[Any]:
    return [
        TokenIdsInput(tuple(model.preprocess([text])["input_ids"].reshape(-1).tolist())) for text in texts
    ]


@pytest.mark.parametrize("model_type", ["bert", "qwen2", "mpnet"])
def test_ids_have_the_vectors_of_their_texts(
    model_type: str, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    path = save_small_model(tmp_path, model_type)
    served, model = serve(path, token_ids="model"), load_embedder(path)
    mixed = [*ids_of(model, texts[:8]), *texts[8:]]
    assert_same_vectors(served.embed(mixed), references.vectors(model.encode, texts))
    largest = served.model.vocabulary.size
    with pytest.raises(BadInput, match=f"input 0 has the token id {largest}"):
        served.embed([TokenIdsInput((largest,))])


def test_ids_of_static_models(serve: Serve, texts: list[str], tmp_path: Path) -> None:
    static = StaticEmbedding(make_tokenizer("bert").backend_tokenizer, embedding_dim=16)
    path = save_pipeline(tmp_path, [static])
    served, model = serve(path, token_ids="model"), load_embedder(path)
    assert_same_vectors(served.embed(ids_of(model, texts)), references.vectors(model.encode, texts))


def test_queries_of_late_interaction_models_are_filled_up_as_texts_are(
    serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    expansion = {"strategy": "fixed", "length": 32, "token": None, "attend": False}
    path = save_small_late_interaction(tmp_path, "bert", query_expansion=expansion)
    served, model = serve(path, token_ids="model"), load_late_interaction(path)
    queries = [" ".join(text.split()[:9]) for text in texts[:6]]
    ids = [TokenIdsInput(tuple(model.tokenizer(query)["input_ids"])) for query in queries]
    expected = references.token_vectors(model.encode_query, queries)
    actual = served.multivector(ids, input_type="query", prompt="")
    assert_same_vectors(actual, expected)


def test_a_model_that_reads_texts_its_own_way_says_so(bert: Path) -> None:
    encode = ProcessorEncoder(
        model=load_embedder(bert), lock=None, max_tokens=256, count_prompt_tokens=lambda prompt: 0
    )
    with pytest.raises(BadInput, match="input 1 consists of token ids, but this model's own preprocessing"):
        encode(number_inputs(["a", TokenIdsInput((1,))]), InputOptions())
    with pytest.raises(BadInput, match=r"has 6 tokens, but this model's own preprocessing cannot cut it"):
        encode(number_inputs(["word1 word2 word3 word4"]), InputOptions(max_tokens=3))
