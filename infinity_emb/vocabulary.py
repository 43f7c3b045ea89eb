"""A model's vocabulary by the `tokenizers` library: texts → tokens with their places, and ids → texts.

Knows nothing of limits, prompts or requests; `tokenizing.py` has the way of texts that are computed.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from infinity_emb.backends.base import Token
from infinity_emb.tokenizing import RawTokenizer


class RawVocabulary:
    """The vocabulary of a `RawTokenizer`.

    num_rows: ids that the network has a row for, where it is known: tokenizers may know more.
    """

    def __init__(self, tokenizer: RawTokenizer, num_rows: int | None = None) -> None:
        self._tokenizer = tokenizer
        self._num_rows = num_rows

    @functools.cached_property
    def size(self) -> int:
        """As `Vocabulary` says. Ids may have gaps, so that their number does not tell the largest."""
        known = self._tokenizer.own_tokenizer().get_vocab(with_added_tokens=True)
        num_known = max(known.values(), default=-1) + 1
        return num_known if self._num_rows is None else min(num_known, self._num_rows)

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[Token]:
        """As `Vocabulary` says."""
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
        """As `Vocabulary` says."""
        return self._tokenizer.own_tokenizer().decode(list(ids), skip_special_tokens=skip_special_tokens)
