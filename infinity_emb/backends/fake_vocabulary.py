"""The fake's vocabulary: a token is a character, its id the code point. There are no special tokens."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from infinity_emb.backends.base import Token
from infinity_emb.errors import BadInput


class FakeVocabulary:
    """As `Vocabulary` says."""

    size = sys.maxunicode + 1

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[Token]:
        """A token per character; nothing is added."""
        if any("\ud800" <= each <= "\udfff" for each in text):
            raise BadInput("a text is not valid Unicode; remove lone surrogates from it")
        return [Token(ord(each), each, False, (at, at + 1)) for at, each in enumerate(text)]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The characters; what is none becomes the replacement character."""
        return "".join("\ufffd" if 0xD800 <= each <= 0xDFFF else chr(each) for each in ids)
