"""Which tokenizer a loaded model is asked through, and how many ids its network can read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router, Transformer
from sentence_transformers.sentence_transformer.modules import BoW, Pooling, StaticEmbedding
from transformers import CanineTokenizer

from infinity_emb.backends.torch.vocabulary import PythonVocabulary, make_vocabulary
from infinity_emb.preprocessing.vocabulary import FastVocabulary
from tests.support.small_models import HIDDEN_SIZE, VOCABULARY_SIZE, make_tokenizer, save_network
from tests.support.small_models.media import save_clip

pytestmark = pytest.mark.model
TEXT = "word1 word22"


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: Any) -> Path:
    return save_network(tmp_path_factory.mktemp("backbone"), "bert")


def load(*modules: torch.nn.Module) -> SentenceTransformer:
    return SentenceTransformer(modules=list(modules), device="cpu")


def test_a_transformers_ids_are_those_that_its_table_has_a_row_for(backbone: Path) -> None:
    model = load(Transformer(str(backbone)), Pooling(HIDDEN_SIZE))
    vocabulary = make_vocabulary(model)
    assert isinstance(vocabulary, FastVocabulary)
    assert [each.id for each in vocabulary.tokenize(TEXT)] == model.tokenizer(TEXT)["input_ids"]
    assert vocabulary.size == len(model.tokenizer) <= VOCABULARY_SIZE
    network: Any = model[0].model
    network.resize_token_embeddings(17)
    cut = make_vocabulary(model)
    assert cut is not None
    assert cut.size == 17


def test_a_static_model_adds_no_special_tokens() -> None:
    tokenizer = make_tokenizer("bert").backend_tokenizer
    vocabulary = make_vocabulary(load(StaticEmbedding(tokenizer, embedding_dim=8)))
    assert vocabulary is not None
    expected = tokenizer.encode(TEXT, add_special_tokens=False)
    assert [each.id for each in vocabulary.tokenize(TEXT)] == expected.ids
    assert vocabulary.size == max(tokenizer.get_vocab().values()) + 1


def test_a_router_is_asked_through_a_route_that_it_has(backbone: Path) -> None:
    routes = [[Transformer(str(backbone)), Pooling(HIDDEN_SIZE)] for _ in range(2)]
    router = Router.for_query_document(query_modules=routes[0], document_modules=routes[1])
    vocabulary = make_vocabulary(load(router))
    assert isinstance(vocabulary, FastVocabulary)
    assert len(vocabulary.tokenize(TEXT)) == 4


def test_a_tokenizer_in_python_tells_ids_and_names_but_no_places(backbone: Path) -> None:
    transformer = Transformer(str(backbone))
    transformer.processor = CanineTokenizer()
    vocabulary = make_vocabulary(load(transformer, Pooling(HIDDEN_SIZE)))
    assert isinstance(vocabulary, PythonVocabulary)
    tokens = vocabulary.tokenize("ab")
    reference = CanineTokenizer()("ab", return_special_tokens_mask=True)
    assert [each.id for each in tokens] == reference["input_ids"]
    assert [each.is_special for each in tokens] == [bool(each) for each in reference["special_tokens_mask"]]
    assert {each.span for each in tokens} == {None}
    assert vocabulary.decode([each.id for each in tokens]) == "ab"
    assert vocabulary.size == VOCABULARY_SIZE


def test_a_model_with_two_towers_tells_the_size_of_its_tokenizer(tmp_path: Path) -> None:
    model = SentenceTransformer(str(save_clip(tmp_path)), device="cpu")
    vocabulary = make_vocabulary(model)
    assert vocabulary is not None
    assert vocabulary.size == max(model.tokenizer.get_vocab().values()) + 1


def test_bags_of_words_have_none() -> None:
    assert make_vocabulary(load(BoW(["a", "b"]))) is None
