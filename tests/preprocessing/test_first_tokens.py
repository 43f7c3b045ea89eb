"""Cut a text after a number of tokens, without reading all of a long one."""

from __future__ import annotations

import pytest

from infinity_emb.backends.fake import FakeVocabulary
from infinity_emb.preprocessing.first_tokens import keep_first_tokens
from infinity_emb.preprocessing.vocabulary import Token


class Words(FakeVocabulary):
    """A vocabulary of words, with and without the offsets that a slow tokenizer lacks."""

    def __init__(self, *, has_offsets: bool = True) -> None:
        self.num_read = 0
        self._has_offsets = has_offsets

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[Token]:
        assert not add_special_tokens
        self.num_read = max(self.num_read, len(text))
        tokens, start = [], 0
        for word in text.split(" "):
            span = (start, start + len(word)) if self._has_offsets else None
            tokens.append(Token(len(word), word, False, span))
            start += len(word) + 1
        return tokens

    def decode(self, ids: object, *, skip_special_tokens: bool = True) -> str:
        return f"decoded {ids}"


@pytest.mark.parametrize(
    ("text", "max_tokens", "kept"),
    [
        ("one two three", 2, "one two"),
        ("one two three", 3, "one two three"),
        ("one two three", 1, "one"),
        ("one two three", None, "one two three"),
        ("one two three", 10**6, "one two three"),
        ("", 1, ""),
        ("word " * 1000, 3, "word word word"),
        ("w" * 5000 + " end of it", 2, "w" * 5000 + " end"),
    ],
)
def test_the_first_tokens_are_kept(text: str, max_tokens: int | None, kept: str) -> None:
    assert keep_first_tokens(text, max_tokens, Words()) == kept


def test_a_long_text_is_read_in_part() -> None:
    words = Words()
    keep_first_tokens("word " * 10**5, 8, words)
    assert words.num_read < 5000


def test_without_offsets_the_ids_are_decoded() -> None:
    assert keep_first_tokens("one two three", 2, Words(has_offsets=False)) == "decoded [3, 3]"
