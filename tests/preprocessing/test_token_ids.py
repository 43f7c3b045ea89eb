"""Token ids instead of texts: refused, the model's own, or OpenAI's, here a vocabulary of single bytes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken

from infinity_emb.backends.fake import FakeVocabulary
from infinity_emb.engine.results import EmbedOptions
from infinity_emb.errors import BadInput, InputTooLong, StartupError
from infinity_emb.items import InputOptions, TokenIdsInput, number_inputs
from infinity_emb.preprocessing.token_ids import TokenIdReader, tokenize_with_ids
from infinity_emb.preprocessing.tokens import Tokens
from infinity_emb.types import TokenIdPolicy
from tests.support.fake_engines import call, fake_engine

BYTES = tiktoken.Encoding(
    "bytes", pat_str=r"(?s).", mergeable_ranks={bytes([each]): each for each in range(256)}, special_tokens={}
)


@pytest.fixture
def openai(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiktoken, "get_encoding", {"cl100k_base": BYTES}.__getitem__)


def first_values(*inputs: Any, token_ids: str = "model", **how: Any) -> list[Any]:
    """The fake's vectors say how many characters a text has; a sparse one, which."""
    answer = call(
        fake_engine("kind=embedder", token_ids=token_ids), "encode", list(inputs), EmbedOptions(**how)
    )
    if answer.sparse is not None:
        return [row.indices.tolist() for row in answer.sparse]
    return [float(row[0]) for row in answer.dense]


# The model's own


def test_the_models_own_ids_are_used_exactly_as_given() -> None:
    assert first_values(TokenIdsInput((99, 98, 97)), outputs=("sparse",)) == [[97, 98, 99]]


def test_ids_and_texts_may_stand_side_by_side_and_equal_ones_are_one() -> None:
    inputs = [TokenIdsInput((1, 2)), "abc", TokenIdsInput((1, 2)), "", TokenIdsInput((5,))]
    assert first_values(*inputs) == [2, 3, 2, 0, 1]


@pytest.mark.parametrize(("side", "kept"), [("model", [97, 98]), ("right", [97, 98]), ("left", [98, 99])])
def test_ids_over_the_limit_are_cut_like_texts(side: Any, kept: list[int]) -> None:
    given = TokenIdsInput((97, 98, 99))
    assert first_values(given, outputs=("sparse",), max_tokens=2, truncation=side) == [kept]
    with pytest.raises(InputTooLong, match="input 1 has 3 tokens, the limit is 2"):
        first_values("a", given, max_tokens=2, truncation="off")


@pytest.mark.parametrize("wrong", [-1, 0x110000, 10**30])
def test_an_id_outside_of_the_vocabulary_is_refused_before_anything_is_computed(wrong: int) -> None:
    with pytest.raises(BadInput, match=f"input 1 has the token id {wrong}; this model's vocabulary has 0 to"):
        first_values("a", TokenIdsInput((1, wrong)))


def test_no_prompt_goes_before_ids_unless_it_is_empty() -> None:
    with pytest.raises(BadInput, match="input 1 consists of token ids, which no prompt can precede"):
        first_values("a", TokenIdsInput((1,)), prompt="p: ")
    assert first_values("a", TokenIdsInput((1,)), prompt="") == [1, 1]


@pytest.mark.parametrize("how", [{"chunking": True}, {}])
def test_ids_are_neither_split_nor_joined(how: dict[str, Any]) -> None:
    task = "encode" if how else "encode_passages"
    with pytest.raises(BadInput, match="cannot be split or joined"):
        call(
            fake_engine("kind=embedder", token_ids="model"), task, [TokenIdsInput((1,))], EmbedOptions(**how)
        )


def test_an_empty_list_of_ids_is_refused() -> None:
    with pytest.raises(BadInput, match="input 0 is an empty list of token ids"):
        first_values(TokenIdsInput(()))


def test_a_model_without_a_vocabulary_cannot_be_started_with_its_own_ids() -> None:
    with pytest.raises(StartupError, match="tokenizer cannot be inspected"):
        TokenIdReader(TokenIdPolicy.model, None)
    TokenIdReader(TokenIdPolicy.refuse, None)


def test_other_tasks_take_no_ids() -> None:
    with pytest.raises(BadInput, match="is TokenIdsInput, not a text"):
        call(fake_engine("kind=reranker", token_ids="model"), "rerank", query="q", docs=[TokenIdsInput((1,))])


# Nobody's


def test_ids_are_refused_where_nothing_else_was_asked_for() -> None:
    with pytest.raises(BadInput, match="input 1 is a list of token ids, which this model does not take"):
        first_values("a", TokenIdsInput((1,)), token_ids="refuse")


# OpenAI's


@pytest.mark.usefixtures("openai")
def test_openais_ids_become_the_texts_that_they_stand_for() -> None:
    ids = [TokenIdsInput(tuple(BYTES.encode(text))) for text in ("ab", "日本")]
    assert first_values(*ids, "abc", token_ids="cl100k") == [2, 2, 3]
    prompted = first_values(ids[0], token_ids="cl100k", prompt="b: ", outputs=("sparse",))
    assert prompted == [sorted(map(ord, set("b: ab")))]
    assert first_values(ids[0], token_ids="cl100k", chunking=True) == [2]


@pytest.mark.usefixtures("openai")
@pytest.mark.parametrize("wrong", [256, -1, 2**40])
def test_an_id_that_openai_has_not_is_refused(wrong: int) -> None:
    with pytest.raises(BadInput, match="input 1 has a token id that is not one of OpenAI's cl100k_base"):
        first_values("a", TokenIdsInput((97, wrong)), token_ids="cl100k")


def test_without_tiktoken_the_start_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(StartupError, match=r"pip install 'infinity-emb\[tiktoken\]'"):
        fake_engine(token_ids="cl100k")


def test_without_its_file_the_start_says_where_it_comes_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(name: str) -> Any:
        raise OSError("no network")

    monkeypatch.setattr(tiktoken, "get_encoding", fail)
    with pytest.raises(StartupError, match=r"cl100k_base\.tiktoken, .* TIKTOKEN_CACHE_DIR: OSError: no net"):
        fake_engine(token_ids="cl100k")


# The door


class Letters:
    """A token per letter, and BadInput for a text with an `x`."""

    truncation_side = "left"

    def __call__(self, inputs: Any, *, prompt: str, truncation: Any, max_tokens: int | None) -> list[Tokens]:
        for text, position in inputs:
            if "x" in text:
                raise BadInput("has an x", position=position)
        return [Tokens(np.array([ord(each) for each in text], dtype=np.int32)) for text, _ in inputs]


def test_the_door_puts_each_input_at_its_place_and_blames_the_right_one() -> None:
    inputs = [TokenIdsInput((1, 2, 3)), "ab", TokenIdsInput((4,)), "c"]
    tokens = tokenize_with_ids(Letters(), number_inputs(inputs), InputOptions(), 2)
    assert [each.ids.tolist() for each in tokens] == [[2, 3], [97, 98], [4], [99]]
    assert {each.ids.dtype for each in tokens} == {np.dtype(np.int32)}
    with pytest.raises(BadInput, match="input 3 has an x"):
        tokenize_with_ids(Letters(), number_inputs([*inputs[:3], "x"]), InputOptions(), None)
    assert [
        each.ids.tolist()
        for each in tokenize_with_ids(Letters(), number_inputs([TokenIdsInput((7,))]), InputOptions(), None)
    ] == [[7]]


def test_the_fakes_vocabulary_is_that_of_its_tokens() -> None:
    assert [each.id for each in FakeVocabulary().tokenize("aß")] == [97, 223]
    assert FakeVocabulary().decode([0xD800]) == "\ufffd"
    with pytest.raises(BadInput, match="lone surrogates"):
        FakeVocabulary().tokenize("\ud800")
