"""Texts over the limit: cut on either side, refused, in averaged pieces, or read as one (late chunking)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import ByteLevel

from infinity_emb.backends.torch.encoders import TokenEncoder
from infinity_emb.engine.results import EmbedOptions
from infinity_emb.errors import BadInput, InputTooLong
from infinity_emb.items import InputOptions, LateChunkingInput, number_inputs
from infinity_emb.preprocessing.fast_tokenizer import FastTokenizer
from infinity_emb.types import Truncation
from tests.parity import references
from tests.parity.conftest import Serve
from tests.parity.references import load_embedder, load_reranker
from tests.parity.serving import Array, Served, assert_same_scores, assert_same_vectors
from tests.support.small_models import HIDDEN_SIZE, random_texts, save_small_classifier, save_small_model

pytestmark = pytest.mark.model

LIMIT = 40
PROMPT = "word9 word10 "
# Architecture, pooling, and how the model runs. qwen2 has a token for each byte and adds none.
MODELS = {
    "bert": ("bert", "mean", "packed"),
    "modernbert": ("modernbert", "mean", "packed"),
    "qwen2": ("qwen2", "mean", "packed"),
    "mpnet": ("mpnet", "mean", "padded"),
}

Compared = tuple[Served, SentenceTransformer]


@pytest.fixture(scope="module", params=MODELS)
def compared(request: pytest.FixtureRequest, serve: Serve, tmp_path_factory: Any) -> Compared:
    model_type, mode, attention = MODELS[request.param]
    folder = tmp_path_factory.mktemp("model")
    path = save_small_model(
        folder, model_type, pooling_mode=mode, normalize=request.param != "modernbert", max_seq_length=LIMIT
    )
    served = serve(path)
    assert served.attention == attention, served.engine.info.attention_reason
    assert served.reads_tokens
    assert served.engine.info.max_tokens == LIMIT
    return served, load_embedder(path)


@pytest.fixture(scope="module")
def long_texts() -> list[str]:
    return [text for text in random_texts(60, max_words=200, seed=7) if len(text.split()) > LIMIT + 3][:8]


def own_tokenizer(model: Any) -> Tokenizer:
    """A copy of the tokenizers library's object, without the wrapper of transformers."""
    tokenizer = Tokenizer.from_str(model.tokenizer.backend_tokenizer.to_str())
    tokenizer.no_padding()
    return tokenizer


def pooled(model: SentenceTransformer, ids: list[int]) -> Array:
    """(D,) of these tokens, special ones included."""
    features = {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.int64),
    }
    with torch.inference_mode():
        vector: Array = model(features)["sentence_embedding"][0].numpy()
    return vector


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("prompt", ["", PROMPT])
def test_texts_are_cut_where_the_tokenizer_cuts(
    side: Truncation, prompt: str, compared: Compared, long_texts: list[str], texts: list[str]
) -> None:
    served, model = compared
    tokenizer = own_tokenizer(model)
    tokenizer.enable_truncation(LIMIT, direction=side)
    inputs = [*long_texts, *texts[:4]]
    expected = np.array([pooled(model, tokenizer.encode(prompt + text).ids) for text in inputs])
    assert_same_vectors(served.embed(inputs, truncation=side, prompt=prompt), expected)


def test_the_models_own_side_is_the_default(compared: Compared, long_texts: list[str]) -> None:
    served, model = compared
    assert_same_vectors(served.embed(long_texts), references.vectors(model.encode, long_texts))


def test_texts_that_fit_exactly_are_accepted_where_nothing_may_be_cut(
    compared: Compared, long_texts: list[str]
) -> None:
    served, model = compared
    tokenizer = own_tokenizer(model)
    tokenizer.no_truncation()
    words = long_texts[0].split()
    fitting = [" ".join(words[:count]) for count in range(1, len(words))]
    longest = max((each for each in fitting if len(tokenizer.encode(each).ids) <= LIMIT), key=len)
    actual = served.embed([longest, words[0]], truncation="off")
    assert_same_vectors(actual, references.vectors(model.encode, [longest, words[0]]))
    for too_long in (longest + " word1 ", long_texts[0] * 50):
        with pytest.raises(InputTooLong, match=f"the limit is {LIMIT}") as raised:
            served.embed([words[0], too_long], truncation="off")
        assert raised.value.position == 1


@pytest.mark.parametrize("side", ["left", "right"])
def test_pairs_are_cut_where_the_tokenizer_cuts(
    side: Truncation, serve: Serve, long_texts: list[str], texts: list[str], tmp_path: Path
) -> None:
    path = save_small_classifier(tmp_path, "bert", max_length=LIMIT)
    served = serve(path)
    model: CrossEncoder = load_reranker(path)
    tokenizer = own_tokenizer(model)
    tokenizer.enable_truncation(LIMIT, direction=side)
    pairs = [(query, doc) for query in (texts[0], long_texts[0]) for doc in (*long_texts, texts[1])]
    expected = []
    for query, doc in pairs:
        encoding = tokenizer.encode(query, doc)
        features = {
            "input_ids": torch.tensor([encoding.ids]),
            "token_type_ids": torch.tensor([encoding.type_ids]),
            "attention_mask": torch.ones(1, len(encoding.ids), dtype=torch.int64),
        }
        with torch.inference_mode():
            expected.append(torch.sigmoid(model(features)["scores"])[0, 0].item())
    docs = [doc for _, doc in pairs[: len(pairs) // 2]]
    actual = [served.scores(query, docs, truncation=side) for query in (texts[0], long_texts[0])]
    assert_same_scores(np.concatenate(actual), np.array(expected))


@pytest.mark.parametrize("prompt", ["", PROMPT])
def test_chunking_averages_the_vectors_of_the_pieces(
    prompt: str, compared: Compared, long_texts: list[str], texts: list[str]
) -> None:
    """Weighted by the pieces' own tokens; scaled to length 1 where the model's vectors have it."""
    served, model = compared
    tokenizer = own_tokenizer(model)
    tokenizer.no_truncation()
    split = served.model.split
    assert split is not None
    inputs = [*long_texts, *texts[:3], long_texts[0]]
    expected = []
    for text in inputs:
        pieces = split(text, prompt=prompt, max_tokens=LIMIT)
        parts = [text[piece.start : piece.end] for piece in pieces]
        assert "".join(parts) == text
        whole = [len(tokenizer.encode(prompt + part).ids) for part in parts]
        assert max(whole) <= LIMIT or len(parts) == 1
        weights = [len(tokenizer.encode(part, add_special_tokens=False).ids) for part in parts]
        rows = references.vectors(model.encode, parts, prompt=prompt)
        average = np.average(rows, axis=0, weights=weights)
        is_normalized = abs(np.linalg.norm(rows, axis=1) - 1).max() < 1e-4
        expected.append(average / np.linalg.norm(average) if is_normalized and len(parts) > 1 else average)
    assert len(pieces) > 1
    assert_same_vectors(served.embed(inputs, chunking=True, prompt=prompt), np.array(expected))


def after_pooling(model: SentenceTransformer, rows: Array) -> Array:
    """(N, D) means of tokens through the modules behind the pooling."""
    features = {"sentence_embedding": torch.from_numpy(np.array(rows, dtype=np.float32))}
    for module in list(model)[2:]:
        features = module(features)
    return features["sentence_embedding"].numpy()


@pytest.mark.parametrize("prompt", ["", PROMPT])
def test_late_chunking_averages_the_tokens_of_each_passage(prompt: str, compared: Compared) -> None:
    served, model = compared
    passages = ["word1 word2", "word3 ", "word4 word5 word1", "word6"]
    if model.tokenizer.num_special_tokens_to_add() == 0:  # a token for each byte
        passages = ["abc d", "e", "fgh", "ab"]
    answer = served.wait_for(served.engine.encode_passages(passages, EmbedOptions(prompt=prompt)))
    whole = "".join([passages[0] + " ", passages[1] if passages[1][-1] == " " else passages[1] + " "])
    whole += passages[2] + " " + passages[3]
    assert answer.spans is not None
    assert [whole[start:end].strip() for start, end in answer.spans] == [each.strip() for each in passages]
    assert_same_vectors(answer.dense, late_chunks(model, whole, answer.spans, prompt))


def late_chunks(model: SentenceTransformer, whole: str, spans: Any, prompt: str) -> Array:
    """(N, D): the means of sentence-transformers' token embeddings over the tokens that begin in a span."""
    tokenizer = own_tokenizer(model)
    tokenizer.no_truncation()
    offsets = tokenizer.encode(prompt + whole).offsets
    tokens = model.encode(
        [prompt + whole], output_value="token_embeddings", show_progress_bar=False, convert_to_numpy=False
    )[0].numpy()
    assert len(tokens) == len(offsets)
    means = []
    for start, end in spans:
        inside = [
            at
            for at, (first, last) in enumerate(offsets)
            if last > first and len(prompt) + start <= first < len(prompt) + end
        ]
        means.append(tokens[inside].mean(axis=0))
    return after_pooling(model, np.array(means))


def test_a_word_whose_token_begins_with_the_space_before_it_belongs_to_its_own_passage() -> None:
    """As with byte-level tokenizers; the last passage would have no token at all."""
    words = {symbol: number for number, symbol in enumerate(["a", "Ġb", "Ġc"])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="a"))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    encoding = tokenizer.encode("a b c")
    assert encoding.tokens == ["a", "Ġb", "Ġc"]
    assert encoding.offsets == [(0, 1), (1, 3), (3, 5)]
    encode = TokenEncoder(
        tokenize=FastTokenizer(tokenizer),
        max_tokens=None,
        has_type_ids=False,
        count_prompt_tokens=lambda prompt: 0,
        has_pooling=True,
    )
    for passages, prompt, spans in (
        (("a ", "b ", "c"), "", ((0, 1), (1, 2), (2, 3))),
        (("b ", "c"), "a ", ((1, 2), (2, 3))),
    ):
        (encoded,) = encode(
            number_inputs([LateChunkingInput(passages)]), InputOptions(prompt=prompt, outputs=("chunks",))
        )
        assert encoded.spans == spans
        assert encoded.token_ids.tolist() == [words["a"], words["Ġb"], words["Ġc"]]


def test_cutting_on_the_left_is_refused_where_pooling_leaves_the_prompt_out(
    serve: Serve, tmp_path: Path, long_texts: list[str]
) -> None:
    """The prompt would be cut off, and tokens of the text left out in its place."""
    served = serve(save_small_model(tmp_path, "bert", include_prompt=False, max_seq_length=LIMIT))
    with pytest.raises(BadInput, match="cut on the right"):
        served.embed(long_texts[:1], prompt=PROMPT, truncation="left")
    assert served.embed(long_texts[:1], truncation="left").shape == (1, HIDDEN_SIZE)


def test_late_chunking_by_size(compared: Compared, long_texts: list[str]) -> None:
    served, model = compared
    text = (
        long_texts[0][: LIMIT - 4]
        if model.tokenizer.num_special_tokens_to_add() == 0
        else " ".join(long_texts[0].split()[: LIMIT - 4])
    )
    answer = served.wait_for(served.engine.encode_passages([text], chunk_size=10))
    assert answer.spans is not None
    assert len(answer.spans) > 2
    assert "".join(text[start:end] for start, end in answer.spans) == text
    assert_same_vectors(answer.dense, late_chunks(model, text, answer.spans, ""))


def test_passages_that_are_too_long_together_are_refused(compared: Compared, long_texts: list[str]) -> None:
    served, _ = compared
    with pytest.raises(InputTooLong, match=f"the limit is {LIMIT}"):
        served.wait_for(served.engine.encode_passages(long_texts))
