"""Tokenize texts and pairs with the `tokenizers` library, as sentence-transformers does.

Each thread uses its own copy of the tokenizer. The wrapper in transformers modifies a shared instance on
every call, which is slow and fails under concurrency.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from infinity_emb.errors import BadInput, StartupError, one_line
from infinity_emb.items import Pair, Piece, RequestInput
from infinity_emb.preprocessing.chunking import find_piece_starts
from infinity_emb.preprocessing.pair_truncation import Counts, divide_tokens, find_kept_indices
from infinity_emb.preprocessing.text_truncation import (
    Limit,
    Part,
    count_uncut_tokens,
    encode_beginnings,
    is_part_enough,
    is_text_enough,
)
from infinity_emb.preprocessing.tokens import (
    MAX_CHARS_READ,
    Tokens,
    check_not_empty,
    check_readable,
    too_long,
)
from infinity_emb.types import Truncation

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

# A piece may have a few tokens more than the same range of the whole text: its first word loses the space
# before it, and byte-level tokens that cross its ends are split.
CUT_SLACK_TOKENS = 4


def open_tokenizer(path: Path) -> Tokenizer:
    """Read a file of the tokenizers library. Raises StartupError with the library's message."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as exc:  # the library raises nothing narrower
        raise StartupError(one_line(exc, 200)) from exc


class FastTokenizer:
    """Tokenize on any number of threads; each has its own copy of the tokenizer.

    tokenizer: configured by sentence-transformers, including normalizers and post-processor.
    truncation_side: the side on which texts are truncated by default.
    adds_special_tokens: whether single texts get the model's start and end tokens.
    allows_empty: whether a text may have no tokens.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        truncation_side: str = "right",
        adds_special_tokens: bool = True,
        allows_empty: bool = False,
    ) -> None:
        from tokenizers.models import BPE

        self._serialized = tokenizer.to_str()
        self._is_bpe = isinstance(tokenizer.model, BPE)
        self.truncation_side = truncation_side
        self._adds_special_tokens = adds_special_tokens
        self._allows_empty = allows_empty
        self._per_thread = threading.local()

    def __call__(
        self, inputs: Sequence[RequestInput], *, prompt: str, truncation: Truncation, max_tokens: int | None
    ) -> list[Tokens]:
        """Implement `Tokenize`."""
        tokenizer = self.get_thread_tokenizer()
        is_pair = isinstance(inputs[0].value, Pair)
        side = self.truncation_side if truncation in ("model", "off") else truncation
        limit = Limit(max_tokens, side, may_cut=truncation != "off")
        self._check_limit(tokenizer, max_tokens, is_pair=is_pair)
        values: list[Any] = [item.value for item in inputs]
        if is_pair:
            pairs = [(prompt + query, document) for query, document in values]
            tokens = self._tokenize_pairs(tokenizer, pairs, inputs, limit)
        else:
            limit.apply_to(tokenizer)
            texts = [prompt + text for text in values]
            max_chars = limit.max_chars
            if max_tokens is None or max_chars is None or max(map(len, texts)) <= max_chars:
                encodings = self._encode(tokenizer, texts)
            else:
                encode = functools.partial(self._encode, tokenizer, with_word_ids=True)
                is_enough = functools.partial(is_text_enough, max_tokens=max_tokens, is_bpe=self._is_bpe)
                parts = encode_beginnings(texts, max_chars, encode, is_enough)
                encodings = [part.encoding for part in parts]
            if not limit.may_cut:
                _check_lengths(encodings, max_tokens, inputs)
            tokens = [Tokens(np.array(encoding.ids, dtype=np.int32)) for encoding in encodings]
        if is_pair or not self._allows_empty:
            check_not_empty(tokens, inputs)
        return tokens

    def split(self, text: str, *, prompt: str, max_tokens: int, is_alone: bool = True) -> list[Piece]:
        """Implement `Split`; split before a word if the word is shorter than a piece."""
        tokenizer = self.get_thread_tokenizer()
        tokenizer.no_truncation()
        num_reserved = len(self._encode(tokenizer, [prompt])[0].ids) + CUT_SLACK_TOKENS if is_alone else 0
        size = max_tokens - num_reserved
        if size < 1:
            raise BadInput(
                f"leaves no room for a text: {num_reserved} of {max_tokens} tokens are the prompt's"
            )
        encoding = self._encode(tokenizer, [text], with_word_ids=True, add_special_tokens=False)[0]
        if len(encoding.ids) <= size + is_alone * CUT_SLACK_TOKENS:
            return [Piece(0, len(text), len(encoding.ids))]
        offsets = encoding.offsets  # the library builds the list on each access
        first_tokens = find_piece_starts(encoding.word_ids, offsets, size)
        starts = [0, *(offsets[token][0] for token in first_tokens[1:])]
        counts = np.diff([*first_tokens, len(encoding.ids)]).tolist()
        return list(map(Piece, starts, [*starts[1:], len(text)], counts))

    def encode_uncut(self, text: str, *, add_special_tokens: bool = True) -> Encoding:
        """Encode a whole text with offsets, and with special tokens if the model's texts get any."""
        tokenizer = self.get_thread_tokenizer()
        tokenizer.no_truncation()
        add_special_tokens = add_special_tokens and self._adds_special_tokens
        return self._encode(tokenizer, [text], with_word_ids=True, add_special_tokens=add_special_tokens)[0]

    def get_thread_tokenizer(self) -> Tokenizer:
        """Return this thread's copy, whose truncation settings may be changed."""
        tokenizer: Tokenizer | None = getattr(self._per_thread, "tokenizer", None)
        if tokenizer is None:
            from tokenizers import Tokenizer

            tokenizer = Tokenizer.from_str(self._serialized)
            tokenizer.no_padding()
            self._per_thread.tokenizer = tokenizer
        return tokenizer

    def _encode(
        self,
        tokenizer: Tokenizer,
        texts: list[str],
        *,
        with_word_ids: bool = False,
        add_special_tokens: bool | None = None,
    ) -> list[Encoding]:
        check_readable(texts)
        encode = tokenizer.encode_batch if with_word_ids else tokenizer.encode_batch_fast
        if add_special_tokens is None:
            add_special_tokens = self._adds_special_tokens
        try:
            return encode(texts, add_special_tokens=add_special_tokens)
        except (TypeError, UnicodeEncodeError) as exc:
            raise BadInput(f"a text is not valid Unicode ({exc}); remove lone surrogates from it") from exc

    def _check_limit(self, tokenizer: Tokenizer, max_tokens: int | None, *, is_pair: bool) -> None:
        """Raise BadInput if the special tokens exceed the limit; the library would then truncate nothing."""
        num_special = tokenizer.num_special_tokens_to_add(is_pair) if self._adds_special_tokens else 0
        if max_tokens is not None and max_tokens < num_special:
            raise BadInput(
                f"cannot be cut at {max_tokens} tokens: {num_special} are special ones; ask for more"
            )

    def _tokenize_pairs(
        self,
        tokenizer: Tokenizer,
        pairs: list[tuple[str, str]],
        inputs: Sequence[RequestInput],
        limit: Limit,
    ) -> list[Tokens]:
        """Encode each text without special tokens, a repeated query once, and join them by post-processing.

        The library's own truncation is not used: it keeps every combination of the parts that it cuts off the
        two texts, which takes gigabytes if both are long.
        """
        tokenizer.no_truncation()
        queries = list(dict.fromkeys(query for query, _ in pairs))
        query_parts = dict(zip(queries, self._encode_parts(tokenizer, queries, limit), strict=True))
        document_parts = self._encode_parts(tokenizer, [document for _, document in pairs], limit)
        num_special = tokenizer.num_special_tokens_to_add(True)
        tokens = []
        for (query, _), document_part, item in zip(pairs, document_parts, inputs, strict=True):
            parts = (query_parts[query], document_part)
            counts = _count_tokens(parts)
            num_tokens = sum(counts) + num_special
            encoding = tokenizer.post_process(parts[0].encoding, parts[1].encoding)
            ids, type_ids = (np.array(each, dtype=np.int32) for each in (encoding.ids, encoding.type_ids))
            pair = Tokens(ids, type_ids)
            if limit.max_tokens is not None and num_tokens > limit.max_tokens:
                if not limit.may_cut:
                    raise too_long(num_tokens, limit.max_tokens, item.position)
                count_whole = functools.partial(self._count_whole, tokenizer, parts)
                kept = divide_tokens(counts, max(0, limit.max_tokens - num_special), count_whole)
                indices = find_kept_indices(encoding.special_tokens_mask, counts, kept, limit.side)
                pair = Tokens(ids[indices], type_ids[indices])
            tokens.append(pair)
        return tokens

    def _encode_parts(self, tokenizer: Tokenizer, texts: list[str], limit: Limit) -> list[Part]:
        """Encode texts of pairs without special tokens."""
        max_tokens, max_chars = limit.max_tokens, limit.max_chars
        if max_tokens is None or max_chars is None or max(map(len, texts)) <= max_chars:
            encodings = self._encode(tokenizer, texts, add_special_tokens=False)
            return [Part(text, encoding) for text, encoding in zip(texts, encodings, strict=True)]
        encode = functools.partial(self._encode, tokenizer, with_word_ids=True, add_special_tokens=False)
        is_enough = functools.partial(is_part_enough, max_tokens=max_tokens, is_bpe=self._is_bpe)
        return encode_beginnings(texts, max_chars, encode, is_enough)

    def _count_whole(self, tokenizer: Tokenizer, parts: tuple[Part, Part]) -> Counts:
        """Count the tokens of both texts as a whole, unless one is too long to be read."""
        texts = [part.text for part in parts]
        if all(part.is_whole for part in parts) or max(map(len, texts)) > MAX_CHARS_READ:
            return _count_tokens(parts)
        first, second = self._encode(tokenizer, texts, add_special_tokens=False)
        return len(first.ids), len(second.ids)


def _check_lengths(encodings: list[Encoding], max_tokens: int | None, inputs: Sequence[RequestInput]) -> None:
    """Raise InputTooLong for a text that the library has truncated."""
    for encoding, item in zip(encodings, inputs, strict=True):
        if max_tokens is not None and encoding.overflowing:
            raise too_long(count_uncut_tokens(encoding), max_tokens, item.position)


def _count_tokens(parts: tuple[Part, Part]) -> Counts:
    return len(parts[0].encoding.ids), len(parts[1].encoding.ids)
