"""Texts → token ids, exactly as sentence-transformers tokenizes them, without its padding and locks.

`RawTokenizer` drives the `tokenizers` library itself, one instance per thread with truncation set once:
transformers' wrapper sets truncation on the shared instance at every call, which is slow and fails under
concurrency. `PipelineTokenizer` asks the model's own pipeline, for tokenizers that are not of that library
and for chat templates. Knows nothing of devices, queues or HTTP.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from infinity_emb.backends.base import TokenIds
from infinity_emb.errors import BadInput, InputTooLong

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

# An over-long text is cut to so many characters per token of the limit before it is tokenized.
CHARS_PER_TOKEN = 16
# Tokens of the cut text that must lie behind the limit: what a cut changes is near the cut. That is not so
# inside a word that WordPiece takes for unknown when it is whole, or that Unigram splits from its end.
CUT_MARGIN_TOKENS = 64


class RawTokenizer:
    """Tokenizes on any number of threads; each has its own copy of the tokenizer.

    tokenizer: as sentence-transformers set it up, normalizers and post-processor included.
    max_tokens: where texts are cut, special tokens included; None never cuts.
    prompt: put before every text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        max_tokens: int | None,
        truncation_side: str = "right",
        prompt: str = "",
    ) -> None:
        from tokenizers.models import BPE

        self._serialized = tokenizer.to_str()
        self._is_bpe = isinstance(tokenizer.model, BPE)
        self._max_tokens = max_tokens
        self._truncation_side = truncation_side
        self._prompt = prompt
        self._per_thread = threading.local()

    def __call__(self, texts: list[str], *, truncate: bool) -> list[TokenIds]:
        """Token ids of each text. Raises InputTooLong where `truncate` is false, BadInput for no Unicode."""
        tokenizer = self._own_tokenizer()
        prompted = [self._prompt + text for text in texts] if self._prompt else texts
        if self._max_tokens is None:
            encodings = _encode(tokenizer, prompted)
        elif truncate:
            encodings = self._encode_cut(tokenizer, prompted, self._max_tokens)
        else:
            encodings = self._encode_whole(tokenizer, prompted, self._max_tokens)
        return checked_ids([encoding.ids for encoding in encodings])

    def _own_tokenizer(self) -> Tokenizer:
        tokenizer: Tokenizer | None = getattr(self._per_thread, "tokenizer", None)
        if tokenizer is None:
            from tokenizers import Tokenizer

            tokenizer = Tokenizer.from_str(self._serialized)
            tokenizer.no_padding()
            if self._max_tokens is None:
                tokenizer.no_truncation()
            else:
                tokenizer.enable_truncation(self._max_tokens, direction=self._truncation_side)
            self._per_thread.tokenizer = tokenizer
        return tokenizer

    def _encode_whole(self, tokenizer: Tokenizer, texts: list[str], max_tokens: int) -> list[Encoding]:
        encodings = _encode(tokenizer, texts)
        for position, encoding in enumerate(encodings):
            if encoding.overflowing:
                num_tokens = _num_tokens_uncut(encoding, tokenizer)
                raise InputTooLong(
                    f"has {num_tokens} tokens, the limit is {max_tokens};"
                    " shorten it, or allow it to be cut with truncate=true",
                    position=position,
                )
        return encodings

    def _encode_cut(self, tokenizer: Tokenizer, texts: list[str], max_tokens: int) -> list[Encoding]:
        """Cut long texts before tokenizing them, so that a megabyte of words costs milliseconds."""
        max_chars = max_tokens * CHARS_PER_TOKEN
        if self._truncation_side != "right" or max(map(len, texts), default=0) <= max_chars:
            return _encode(tokenizer, texts)
        starts = [_cut_at_space(text, max_chars) for text in texts]
        encodings = _encode(tokenizer, starts, with_word_ids=True)
        for position, (text, start) in enumerate(zip(texts, starts, strict=True)):
            num_chars = len(start)
            while num_chars < len(text) and not self._is_cut_safe(encodings[position], tokenizer):
                num_chars = min(num_chars * 4, len(text))
                start = _cut_at_space(text, num_chars)
                encodings[position] = _encode(tokenizer, [start], with_word_ids=True)[0]
        return encodings

    def _is_cut_safe(self, encoding: Encoding, tokenizer: Tokenizer) -> bool:
        """Whether the kept tokens end so far before the cut that more text would not change them."""
        assert self._max_tokens is not None
        if _num_tokens_uncut(encoding, tokenizer) < self._max_tokens + CUT_MARGIN_TOKENS:
            return False
        return self._is_bpe or _last_word(encoding) < _last_word(encoding.overflowing[-1])


class PipelineTokenizer:
    """Tokenizes one text at a time, one thread at a time, with the model's own preprocessing.

    encode: text → token ids, cut at the limit; slow, and right by construction.
    """

    def __init__(self, encode: Callable[[str], list[int]], *, max_tokens: int | None) -> None:
        self._encode = encode
        self._max_tokens = max_tokens
        self._lock = threading.Lock()

    def __call__(self, texts: list[str], *, truncate: bool) -> list[TokenIds]:
        """Token ids of each text; where `truncate` is false, a text that fills the limit is refused."""
        with self._lock:
            all_ids = checked_ids([self._encode(text) for text in texts])
        for position, ids in enumerate(all_ids):
            if not truncate and self._max_tokens is not None and len(ids) >= self._max_tokens:
                raise InputTooLong(
                    f"fills or exceeds the limit of {self._max_tokens} tokens;"
                    " shorten it, or allow it to be cut with truncate=true",
                    position=position,
                )
        return all_ids


def _encode(tokenizer: Tokenizer, texts: list[str], *, with_word_ids: bool = False) -> list[Encoding]:
    try:
        return tokenizer.encode_batch(texts) if with_word_ids else tokenizer.encode_batch_fast(texts)
    except (TypeError, UnicodeEncodeError) as exc:
        raise BadInput(f"a text is not valid Unicode ({exc}); remove lone surrogates from it") from exc


def checked_ids(all_ids: list[list[int]]) -> list[TokenIds]:
    """As arrays. Raises BadInput for a text without a token, which has no vector."""
    for position, ids in enumerate(all_ids):
        if not ids:
            raise BadInput("has no token: it is empty and this tokenizer adds nothing", position=position)
    return [np.array(ids, dtype=np.int32) for ids in all_ids]


def _num_tokens_uncut(encoding: Encoding, tokenizer: Tokenizer) -> int:
    num_special = tokenizer.num_special_tokens_to_add(False)
    return len(encoding.ids) + sum(len(part.ids) - num_special for part in encoding.overflowing)


def _last_word(encoding: Encoding) -> int:
    """Number of the word that the last token belongs to; -1 where there are special tokens only."""
    return max((word for word in encoding.word_ids if word is not None), default=-1)


def _cut_at_space(text: str, num_chars: int) -> str:
    """The first `num_chars` characters, less a last word that the cut would break."""
    if len(text) <= num_chars:
        return text
    end = text.rfind(" ", num_chars // 2, num_chars)
    return text[: end if end > 0 else num_chars]
