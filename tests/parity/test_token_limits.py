"""A request's own limit of tokens: the library's answers with `max_seq_length` set to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from infinity_emb.errors import BadInput, InputTooLong
from tests.parity import references
from tests.parity.conftest import Serve
from tests.parity.references import load_embedder, load_late_interaction, load_reranker
from tests.parity.serving import LONG, Served, assert_same_scores, assert_same_vectors
from tests.support.small_models import save_small_classifier, save_small_late_interaction, save_small_model

pytestmark = pytest.mark.model

OWN_LIMIT = 40


@pytest.fixture(scope="module", params=["bert", "qwen2", "mpnet"])
def path(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Path:
    """Packed with and without special tokens, and padded."""
    folder = tmp_path_factory.mktemp("model")
    return save_small_model(folder, request.param, pooling_mode="mean", max_seq_length=OWN_LIMIT)


@pytest.fixture(scope="module")
def served(serve: Serve, path: Path) -> Served:
    return serve(path)


@pytest.mark.parametrize("max_tokens", [9, OWN_LIMIT, 10_000])
def test_a_lower_limit_cuts_there_and_a_higher_one_where_the_model_does(
    served: Served, path: Path, texts: list[str], max_tokens: int
) -> None:
    model = load_embedder(path)
    model.max_seq_length = min(max_tokens, OWN_LIMIT)
    assert_same_vectors(served.embed(texts, max_tokens=max_tokens), references.vectors(model.encode, texts))


def test_the_limit_of_one_request_is_not_that_of_the_next(served: Served, path: Path) -> None:
    cut = served.encode([LONG], max_tokens=9)
    whole = served.encode([LONG])
    assert (cut.num_tokens, whole.num_tokens) == (9, OWN_LIMIT)
    assert_same_vectors(np.array(whole.dense), references.vectors(load_embedder(path).encode, [LONG]))


def test_a_text_over_the_asked_limit_is_refused_where_nothing_may_be_cut(served: Served) -> None:
    with pytest.raises(InputTooLong, match="the limit is 9") as raised:
        served.embed(["a", LONG], truncation="off", max_tokens=9)
    assert raised.value.position == 1


def test_pieces_are_as_small_as_the_limit_that_was_asked_for(served: Served, path: Path) -> None:
    model, split = load_embedder(path), served.model.split
    assert split is not None
    pieces = split(LONG, prompt="", max_tokens=20)
    parts = [LONG[piece.start : piece.end] for piece in pieces]
    rows = references.vectors(model.encode, parts)
    assert all(len(model.tokenizer(part)["input_ids"]) <= 20 for part in parts)
    average = np.average(rows, axis=0, weights=[piece.num_tokens for piece in pieces])
    actual = served.embed([LONG], chunking=True, max_tokens=20)
    assert_same_vectors(actual, (average / np.linalg.norm(average))[None])


def test_a_limit_below_the_special_tokens_is_refused(serve: Serve, bert: Path) -> None:
    """The tokenizers library would cut nothing at all."""
    served = serve(bert)
    with pytest.raises(BadInput, match="2 are special ones"):
        served.embed([LONG], max_tokens=1)
    with pytest.raises(BadInput, match="give 1 or more"):
        served.embed([LONG], max_tokens=0)


def test_documents_of_late_interaction_models_are_cut_too(serve: Serve, tmp_path: Path) -> None:
    path = save_small_late_interaction(tmp_path, "bert")
    served, model = serve(path), load_late_interaction(path)
    model.max_seq_length = 12
    actual = served.multivector([LONG, "word1 word2"], max_tokens=12)
    assert len(actual[0]) <= 12
    assert_same_vectors(actual, references.token_vectors(model.encode, [LONG, "word1 word2"]))


def test_pairs_are_cut_at_the_limit_that_was_asked_for(
    serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    path = save_small_classifier(tmp_path, "bert")
    served, model = serve(path), load_reranker(path)
    model.max_seq_length = 16
    expected = references.scores(model, texts[0], texts[1:])
    assert_same_scores(served.scores(texts[0], texts[1:], max_tokens=16), expected)
    with pytest.raises(BadInput, match="3 are special ones"):
        served.scores(texts[0], texts[1:], max_tokens=2)


def test_texts_and_pairs_are_classified_by_their_first_tokens(
    serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    path = save_small_classifier(tmp_path, "bert", num_labels=3)
    served = serve(path)
    classify = transformers.pipeline("text-classification", str(path), device="cpu", top_k=None)
    inputs: list[Any] = [texts[0], (texts[1], texts[2]), texts[3]]
    asked = [each if isinstance(each, str) else {"text": each[0], "text_pair": each[1]} for each in inputs]
    answers: list[Any] = [classify([each], truncation=True, max_length=16)[0] for each in asked]
    labels = served.engine.info.labels
    expected = [
        [{each["label"]: each["score"] for each in row}[label] for label in labels] for row in answers
    ]
    actual = [[row[label] for label in labels] for row in served.labels(inputs, max_tokens=16)]
    assert_same_scores(np.array(actual), np.array(expected))
