"""Prompts and tasks against `encode`, `encode_query` and `encode_document` of SentenceTransformer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from infinity_emb.errors import BadInput
from tests.parity import references
from tests.parity.conftest import Serve
from tests.parity.references import load_embedder
from tests.parity.serving import LONG, Served, assert_same_vectors
from tests.support.small_models import save_small_model

pytestmark = pytest.mark.model

PROMPTS = {
    "query": "word1 word2: ",
    "document": "word3 ",
    "passage": "word4 word5 word6 ",
    "clustering": "word7 word8 ",
    "empty": "",
}
# Architecture, pooling, and how the model runs.
MODELS = {
    "mean": ("bert", "mean", "packed"),
    "cls": ("roberta", "cls", "packed"),
    "weightedmean": ("modernbert", "weightedmean", "packed"),
    "lasttoken": ("qwen3", "lasttoken", "packed"),
    "bytes": ("qwen2", ("max", "mean_sqrt_len_tokens"), "packed"),
    "padded": ("mpnet", ("mean", "cls"), "padded"),
}

Compared = tuple[Served, SentenceTransformer]


@pytest.fixture(scope="module", params=[(name, keeps) for name in MODELS for keeps in (True, False)], ids=str)
def compared(request: pytest.FixtureRequest, serve: Serve, tmp_path_factory: Any) -> Compared:
    """Pooling that counts the prompt's tokens, and pooling that leaves them out, as INSTRUCTOR's does."""
    name, include_prompt = request.param
    model_type, pooling_mode, attention = MODELS[name]
    path = save_small_model(
        tmp_path_factory.mktemp("model"),
        model_type,
        pooling_mode=pooling_mode,
        include_prompt=include_prompt,
        prompts=PROMPTS,
        default_prompt_name="clustering",
    )
    served = serve(path)
    assert served.attention == attention, served.engine.info.attention_reason
    assert served.reads_tokens
    return served, load_embedder(path)


def test_prompts_equal_sentence_transformers(compared: Compared, texts: list[str]) -> None:
    served, model = compared
    inputs = [*texts[:6], LONG, texts[0]]
    requests: list[dict[str, str]] = [
        {},  # the default prompt
        {"prompt_name": "passage"},
        {"prompt_name": "empty"},
        {"prompt": "word9 word10 word11 "},
        {"prompt": "word9 word10 word11"},
        {"prompt": ""},
        {"prompt": "word20 ", "prompt_name": "query"},
    ]
    answers = [served.embed(inputs, **options) for options in requests]
    for answer, options in zip(answers, requests, strict=True):
        assert_same_vectors(answer, references.vectors(model.encode, inputs, **options))
    assert np.abs(answers[0] - answers[1]).max() > 1e-3, "prompts change nothing in this model"


def test_queries_and_documents_equal_sentence_transformers(compared: Compared, texts: list[str]) -> None:
    """`document` comes before `passage` and `corpus`; a prompt or a name beats what the type stands for."""
    served, model = compared
    inputs = [*texts[:4], LONG]
    for encode, input_types in (
        (model.encode_query, ("query", "search_query", "RETRIEVAL_QUERY")),
        (model.encode_document, ("document", "passage", "search_document")),
    ):
        expected = references.vectors(encode, inputs)
        own = {} if encode == model.encode_query else {"passage": PROMPTS["passage"]}
        for input_type in input_types:
            if input_type not in own:
                assert_same_vectors(served.embed(inputs, input_type=input_type), expected)
        for options in ({"prompt_name": "empty"}, {"prompt": "word50 "}):
            actual = served.embed(inputs, input_type=input_types[0], **options)
            assert_same_vectors(actual, references.vectors(encode, inputs, **options))


def test_rerank_compares_a_query_with_documents(compared: Compared, texts: list[str]) -> None:
    served, model = compared
    query = references.vectors(model.encode_query, texts[:1])[0]
    documents = references.vectors(model.encode_document, texts)
    assert np.abs(served.scores(texts[0], texts) - documents @ query).max() <= 2e-5


def test_tokens_of_the_prompt_are_counted(compared: Compared, texts: list[str]) -> None:
    served, model = compared
    num_tokens = served.encode(texts[:3], prompt_name="query").num_tokens
    read = [model.preprocess([text], prompt=PROMPTS["query"])["input_ids"] for text in texts[:3]]
    assert num_tokens == sum(each.shape[1] for each in read)


def test_a_name_that_the_model_does_not_have_is_refused(compared: Compared, texts: list[str]) -> None:
    with pytest.raises(BadInput, match="prompt_name='web' is not one of this model's prompts"):
        compared[0].embed(texts[:1], prompt_name="web")


@pytest.mark.parametrize("name", ["passage", "corpus"])
def test_a_folder_without_a_document_prompt_has_an_empty_one(
    name: str, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    """So its `passage` prompt is for those who name it."""
    path = save_small_model(tmp_path, "bert")
    config_path = path / "config_sentence_transformers.json"
    config = json.loads(config_path.read_text())
    config["prompts"] = {"query": "word1 ", name: "word2 word3 "}
    config_path.write_text(json.dumps(config))
    served, model = serve(path), load_embedder(path)
    for input_type, encode in (("query", model.encode_query), ("document", model.encode_document)):
        expected = references.vectors(encode, texts[:4])
        assert_same_vectors(served.embed(texts[:4], input_type=input_type), expected)
    named = references.vectors(model.encode, texts[:4], prompt_name=name)
    assert_same_vectors(served.embed(texts[:4], prompt_name=name), named)
    assert np.abs(named - expected).max() > 0.01


@pytest.mark.parametrize("model_type", ["bert", "mpnet"])
def test_a_text_that_has_nothing_but_the_prompt(model_type: str, serve: Serve, tmp_path: Any) -> None:
    """Of an empty text the end token is left to be pooled."""
    path = save_small_model(tmp_path, model_type, include_prompt=False)
    served, model = serve(path), load_embedder(path)
    inputs = ["", "word5", " "]
    expected = references.vectors(model.encode, inputs, prompt="word9 word10 ")
    assert_same_vectors(served.embed(inputs, prompt="word9 word10 "), expected)
