"""Inspect a model's vocabulary: tokenize a text with offsets, and decode token ids."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from infinity_emb.preprocessing.fast_tokenizer import FastTokenizer


class Token(NamedTuple):
    """A token of a text.

    text: its characters in the text; for a special token, or without offsets, its vocabulary entry.
    span: characters [start, end) of the text; None for a special token, or without offsets.
    """

    id: int
    text: str
    is_special: bool
    span: tuple[int, int] | None


class Vocabulary(Protocol):
    """Convert text to tokens and back; safe to call from several threads. Nothing is truncated."""

    @property
    def size(self) -> int:
        """Return the number of token ids: the model accepts 0..size-1."""

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[Token]:
        """Tokenize as a single text for the model. Raise BadInput for a text that is not valid Unicode."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of ids, each in 0..size-1. Tokenizing it again may give different ids."""


class FastVocabulary:
    """The vocabulary of a `FastTokenizer`.

    num_embeddings: size of the network's embedding table, if known: the tokenizer may have more entries.
    """

    def __init__(self, tokenizer: FastTokenizer, num_embeddings: int | None = None) -> None:
        self._tokenizer = tokenizer
        self._num_embeddings = num_embeddings

    @functools.cached_property
    def size(self) -> int:
        """Return one more than the largest id; ids may have gaps."""
        entries = self._tokenizer.get_thread_tokenizer().get_vocab(with_added_tokens=True)
        num_ids = max(entries.values(), default=-1) + 1
        return num_ids if self._num_embeddings is None else min(num_ids, self._num_embeddings)

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[Token]:
        """Implement `Vocabulary`."""
        encoding = self._tokenizer.encode_uncut(text, add_special_tokens=add_special_tokens)
        return [
            Token(token_id, name, True, None)
            if is_special
            else Token(token_id, text[slice(*span)], False, span)
            for token_id, name, is_special, span in zip(
                encoding.ids, encoding.tokens, encoding.special_tokens_mask, encoding.offsets, strict=True
            )
        ]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Implement `Vocabulary`."""
        return self._tokenizer.get_thread_tokenizer().decode(
            list(ids), skip_special_tokens=skip_special_tokens
        )
