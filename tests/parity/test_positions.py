"""Texts are cut at the positions that the network has, on every route, as nothing else can be computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Router
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from infinity_emb.errors import BadInput
from tests.parity import references
from tests.parity.conftest import Serve
from tests.parity.references import copied, load_embedder, load_reranker
from tests.parity.serving import LONG, assert_same_scores, assert_same_vectors
from tests.support.small_models import (
    HIDDEN_SIZE,
    make_tokenizer,
    save_pipeline,
    save_small_classifier,
    save_small_model,
)
from tests.support.small_models.changes import rewrite_json

pytestmark = pytest.mark.model

# Of the small networks' 320 positions; RoBERTa leaves out its padding token's and those before.
BERT_POSITIONS = 320
ROBERTA_POSITIONS = 318
FAR_TOO_LONG = " ".join([LONG] * 3)


def assert_cut_at(path: Path, limit: int, serve: Serve, texts: list[str], **options: Any) -> None:
    """The reference is told the limit, as it fails on longer texts."""
    served = serve(path, **options)
    assert served.engine.info.max_tokens == limit
    reference = load_embedder(path)
    reference.max_seq_length = limit
    inputs = [*texts[:8], LONG, FAR_TOO_LONG]
    assert_same_vectors(served.embed(inputs), references.vectors(reference.encode, inputs))


def load_route(path: Path) -> list[Any]:
    """Load transformer and pooling."""
    return list(SentenceTransformer(str(path), device="cpu"))[:2]


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: Any) -> Path:
    return save_small_model(tmp_path_factory.mktemp("roberta"), "roberta")


@pytest.mark.parametrize("limit", [320, 319, 8192, None, 10**30])
def test_roberta_is_cut_before_its_padding_positions(
    limit: int | None, roberta: Path, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    """Folders give the size of the table, or no limit; it was read beyond the table's end."""
    path = copied(roberta, tmp_path / "model")
    rewrite_json(path / "sentence_bert_config.json", max_seq_length=limit)
    rewrite_json(path / "tokenizer_config.json", model_max_length=limit)
    assert_cut_at(path, ROBERTA_POSITIONS, serve, texts)


@pytest.mark.parametrize("limit", [8192, 10**30])
def test_bert_is_cut_at_its_table_of_positions(
    limit: int, bert: Path, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    path = copied(bert, tmp_path / "model")
    rewrite_json(path / "sentence_bert_config.json", max_seq_length=limit)
    rewrite_json(path / "tokenizer_config.json", model_max_length=limit)
    assert_cut_at(path, BERT_POSITIONS, serve, texts, model_warmup=True)


def test_a_limit_below_the_positions_stays(
    roberta: Path, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    path = copied(roberta, tmp_path / "model")
    rewrite_json(path / "sentence_bert_config.json", max_seq_length=317)
    assert_cut_at(path, 317, serve, texts)


def test_rotary_positions_have_no_table_and_no_end(serve: Serve, texts: list[str], tmp_path: Path) -> None:
    path = save_small_model(tmp_path, "qwen3")
    rewrite_json(path / "sentence_bert_config.json", max_seq_length=700)
    assert_cut_at(path, 700, serve, texts)


@pytest.mark.parametrize("engine", ["optimum", "openvino", "ctranslate2"])
def test_the_other_engines_cut_there_too(
    engine: str, roberta: Path, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    path = copied(roberta, tmp_path / "model")
    rewrite_json(path / "sentence_bert_config.json", max_seq_length=320)
    assert_cut_at(path, ROBERTA_POSITIONS, serve, texts, engine=engine)


def test_pairs_are_cut_at_the_positions(serve: Serve, texts: list[str], tmp_path: Path) -> None:
    """A classifier's folder without a tokenizer config has no limit at all."""
    path = save_small_classifier(tmp_path, "xlm-roberta", max_length=10**30)
    reference = load_reranker(path)
    reference.max_seq_length = ROBERTA_POSITIONS
    docs = [*texts[:6], FAR_TOO_LONG]
    assert_same_scores(serve(path).scores(LONG, docs), references.scores(reference, LONG, docs))


@pytest.mark.parametrize("query_limit", [None, 16])
def test_each_route_has_its_own_limit(
    query_limit: int | None, bert: Path, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    """A static route has none, and gave it to the transformer beside it."""
    tokenizer = make_tokenizer("roberta")._tokenizer
    if query_limit is None:
        tokenizer.no_truncation()
    else:
        tokenizer.enable_truncation(query_limit)
    torch.manual_seed(0)
    static = StaticEmbedding(tokenizer, embedding_dim=HIDDEN_SIZE)
    documents = load_route(bert)
    router = Router.for_query_document([static], documents)
    path = save_pipeline(tmp_path / "router", [router, Normalize()])
    served, reference = serve(path), load_embedder(path)
    inputs = [*texts[:8], FAR_TOO_LONG]
    for task, encode in (("query", reference.encode_query), ("document", reference.encode_document)):
        assert_same_vectors(served.embed(inputs, input_type=task), references.vectors(encode, inputs))


def test_two_transformers_of_a_router_are_cut_apart(
    bert: Path, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    cut: Any = SentenceTransformer(str(bert), device="cpu")
    cut.max_seq_length = 24
    queries, documents = list(cut)[:2], load_route(bert)
    path = save_pipeline(tmp_path / "router", [Router.for_query_document(queries, documents)])
    served, reference = serve(path), load_embedder(path)
    assert served.engine.info.max_tokens == 24, "what texts of both routes may have"
    inputs = [*texts[:8], LONG]
    for task, encode in (("query", reference.encode_query), ("document", reference.encode_document)):
        assert_same_vectors(served.embed(inputs, input_type=task), references.vectors(encode, inputs))


def test_a_router_without_a_default_refuses_a_text_without_a_task(
    bert: Path, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    """sentence-transformers raises; the first route answered."""
    queries, documents = (load_route(bert) for _ in range(2))
    router = Router({"query": queries, "document": documents}, allow_empty_key=False)
    path = save_pipeline(tmp_path / "router", [router])
    served, reference = serve(path, model_warmup=True), load_embedder(path)
    with pytest.raises(ValueError, match="Could not determine route"):
        reference.encode(texts[0])
    with pytest.raises(BadInput, match=r"names no task.*query, document"):
        served.embed(texts[:2])
    expected = references.vectors(reference.encode_query, texts[:4])
    assert_same_vectors(served.embed(texts[:4], input_type="query"), expected)


@pytest.mark.parametrize(
    ("model_type", "engine"),
    [
        ("roberta", "torch"),
        ("xlm-roberta", "torch"),
        ("mpnet", "torch"),
        ("bert", "torch"),
        ("roberta", "ctranslate2"),
        ("xlm-roberta", "ctranslate2"),
    ],
)
def test_a_padding_token_in_a_text_takes_no_position(
    model_type: str, engine: str, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    """RoBERTa passes over it when it counts; packed batches and CTranslate2 count every token."""
    path = save_small_model(tmp_path, model_type)
    inputs = [
        "word1 [PAD] word2 word3",
        "[PAD] word5",
        "[PAD]",
        f"word1 {texts[0]} [PAD] [PAD] {texts[1]}",
        f"[PAD] {FAR_TOO_LONG} [PAD]",
        texts[2],
    ]
    expected = references.vectors(load_embedder(path).encode, inputs)
    served = serve(path, engine=engine)
    assert_same_vectors(served.embed(inputs), expected)
    assert_same_vectors(served.embed(inputs[:1]), expected[:1])


@pytest.mark.parametrize("engine", ["torch", "ctranslate2"])
def test_a_padding_token_in_a_pair_takes_no_position(engine: str, serve: Serve, tmp_path: Path) -> None:
    path = save_small_classifier(tmp_path, "roberta", type_vocab_size=2)
    documents = ["word1 [PAD] word2", "word3 word4 word5", "[PAD] word6"]
    expected = references.raw_scores(load_reranker(path), "word7 [PAD] word8", documents)
    served = serve(path, engine=engine)
    assert_same_scores(served.scores("word7 [PAD] word8", documents, raw_scores=True), expected)
