"""Cut long texts before they are tokenized, so that a megabyte takes milliseconds.

A text is cut to a multiple of the token limit, and the cut is moved further right until the kept tokens no
longer depend on it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from infinity_emb.preprocessing.tokens import MAX_CHARS_READ

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

# A long text is first cut to this many characters per token of the limit.
CHARS_PER_TOKEN = 16
# Tokens of the cut text that must lie beyond the limit: a cut changes only tokens near it. The exceptions are
# a word that WordPiece maps to the unknown token only if it is whole, and one that Unigram splits from its
# end.
CUT_MARGIN_TOKENS = 64


class Limit(NamedTuple):
    """Limit of tokens per input, the side of truncation, and whether truncation is allowed."""

    max_tokens: int | None
    side: str
    may_cut: bool

    @property
    def max_chars(self) -> int | None:
        """Return how many characters of a text are tokenized at first; None for all."""
        if self.max_tokens is None or not self.may_cut or self.side != "right":
            return None
        return min(self.max_tokens * CHARS_PER_TOKEN, MAX_CHARS_READ)

    def apply_to(self, tokenizer: Tokenizer) -> None:
        """Set the library's own truncation."""
        if self.max_tokens is None:
            tokenizer.no_truncation()
        else:
            tokenizer.enable_truncation(self.max_tokens, direction=self.side)


class Part(NamedTuple):
    """A text, and the encoding of its beginning or of all of it."""

    text: str
    encoding: Encoding
    is_whole: bool = True


def encode_beginnings(
    texts: list[str],
    max_chars: int,
    encode: Callable[[list[str]], list[Encoding]],
    is_enough: Callable[[Encoding], bool],
) -> list[Part]:
    """Encode enough of each text to determine its first tokens.

    is_enough: return whether the kept tokens would be the same with more of the text.
    """
    beginnings = [_cut_at_space(text, max_chars) for text in texts]
    parts = []
    for text, beginning, encoding in zip(texts, beginnings, encode(beginnings), strict=True):
        num_chars = max_chars
        while len(beginning) < len(text) and not is_enough(encoding):
            num_chars *= 4
            beginning = _cut_at_space(text, num_chars)
            encoding = encode([beginning])[0]
        parts.append(Part(text, encoding, is_whole=len(beginning) == len(text)))
    return parts


def is_text_enough(encoding: Encoding, *, max_tokens: int, is_bpe: bool) -> bool:
    """Return whether the kept tokens end so long before the cut that more text would not change them.

    encoding: truncated by the library, which keeps the rest as `overflowing`.
    """
    if count_uncut_tokens(encoding) < max_tokens + CUT_MARGIN_TOKENS:
        return False
    return is_bpe or _last_word(encoding) < _last_word(encoding.overflowing[-1])


def is_part_enough(encoding: Encoding, *, max_tokens: int, is_bpe: bool) -> bool:
    """Return the same for a text of a pair, which the library has not truncated."""
    if len(encoding.ids) < max_tokens + CUT_MARGIN_TOKENS:
        return False
    word = encoding.word_ids[max_tokens]
    return is_bpe or (word is not None and word < _last_word(encoding))


def count_uncut_tokens(encoding: Encoding) -> int:
    """Count the tokens that a text had before the library truncated it."""
    num_special = sum(encoding.special_tokens_mask)
    return len(encoding.ids) + sum(len(rest.ids) - num_special for rest in encoding.overflowing)


def _last_word(encoding: Encoding) -> int:
    """Return the index of the last token's word; -1 if there are only special tokens."""
    return max((word for word in encoding.word_ids if word is not None), default=-1)


def _cut_at_space(text: str, num_chars: int) -> str:
    """Return the first `num_chars` characters, without a last word that the cut would split."""
    if len(text) <= num_chars:
        return text
    end = text.rfind(" ", num_chars // 2, num_chars)
    return text[: end if end > 0 else num_chars]
