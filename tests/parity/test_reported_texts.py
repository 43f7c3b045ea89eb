"""Texts that were reported to break servers, read as sentence-transformers reads them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer

from infinity_emb.errors import ServingError
from tests.parity import references
from tests.parity.conftest import Serve
from tests.parity.references import load_embedder
from tests.parity.serving import Served, assert_same_vectors
from tests.support.small_models import save_network, save_small_model
from tests.support.small_models.changes import change_weights
from tests.support.small_tokenizers import load_reference

pytestmark = pytest.mark.model

FAMILIES = {"bert": "wordpiece", "xlm-roberta": "unigram", "roberta": "byte-level bpe"}
TEXTS = {
    "5000 spaces": " " * 5_000,
    "18000 spaces around a word": " " * 9_000 + "word" + " " * 9_000,
    "tabs and line ends": "a\t\t\r\n\r\nb\x0b\x0c\x85c\u2028d",
    "NUL": "a\x00b \x00 \x00\x00",
    "control characters": "a\x01\x07\x1b[31mred\x7f\x9f",
    "emoji of several parts": "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪 1️⃣",
    "right to left": "שלום עולם مرحبا بالعالم \u202eabc\u202c \u200f",
    "letters under many marks": "Z\u0351\u036b\u0343\u036a\u0302a\u0321\u0353\u031el" + "\u0301" * 200,
    "private use and non-characters": "\ue000\uf8ff \U000f0000 \ufffe\uffff \ufdd0",
    "zero width": "a\u200bb\u200cc\u200dd\ufeffe\u2060f\u00adg",
    "composed and decomposed": "é e\u0301 Å A\u030a ﬁ ½ ㎏",
    "replacement character": "a\ufffdb",
    "a byte order mark": "\ufeffword",
    "a million characters": "word river Straße 日本 " * 55_000,
    "one word of a million characters": "a" * 1_000_000,
    "nothing": "",
}

Compared = tuple[Served, SentenceTransformer]


def save_with_tokenizer(folder: Path, model_type: str, kind: str) -> Path:
    tokenizer = load_reference(kind)
    size = {"vocab_size": len(tokenizer)}
    path = save_network(folder / "model", model_type, **size)
    (path / "tokenizer_config.json").unlink()
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module", params=FAMILIES)
def compared(request: pytest.FixtureRequest, serve: Serve, tmp_path_factory: Any) -> Compared:
    folder = tmp_path_factory.mktemp("family")
    path = save_with_tokenizer(folder, request.param, FAMILIES[request.param])
    served, reference = serve(path), load_embedder(path)
    assert served.reads_tokens
    reference.max_seq_length = served.engine.info.max_tokens
    return served, reference


def test_each_text_is_read_as_the_reference_reads_it(compared: Compared) -> None:
    served, reference = compared
    texts = list(TEXTS.values())
    expected = references.vectors(reference.encode, texts)
    assert_same_vectors(served.embed(texts), expected)
    assert_same_vectors(np.concatenate([served.embed([text]) for text in texts]), expected)


def test_five_hundred_texts_of_one_request_keep_their_order(compared: Compared, texts: list[str]) -> None:
    served, reference = compared
    many = [f"{texts[number % 24]} {number}" for number in range(500)]
    expected = reference.encode(many, batch_size=1, show_progress_bar=False)
    assert_same_vectors(served.embed(many), expected)


def test_a_long_text_that_cannot_be_computed_fails_alone_beside_eight_clients(
    serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    path = save_small_model(tmp_path, "bert")
    short = [text[:30] for text in texts[:8]]
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    used = {number for each in tokenizer.encode_batch(["a", *short]) for number in each.ids}
    broken_id = next(number for number in range(40, tokenizer.get_vocab_size()) if number not in used)

    def break_one_word(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors["embeddings.word_embeddings.weight"][broken_id] = torch.nan
        return tensors

    reference = references.vectors(load_embedder(path).encode, short)
    change_weights(path, break_one_word)
    served = serve(path)
    long = " ".join([*texts[0].split()[:100], tokenizer.decode([broken_id]), *texts[1].split()[:100]])

    answers = served.wait_for(ask_at_once(served, [[long], *([text] for text in short), ["a", long]]))

    failed = [answers[0], answers[-1]]
    for position, error in enumerate(failed):
        assert isinstance(error, ServingError)
        assert str(error).startswith(f"input {position} gives NaN or infinity")
    assert_same_vectors(np.array([answer[0][0] for answer in answers[1:-1]]), reference)


async def ask_at_once(served: Served, requests: list[list[str]]) -> list[Any]:
    embed: Callable[..., Any] = served.engine.embed
    return await asyncio.gather(*(embed(sentences=each) for each in requests), return_exceptions=True)
