"""Texts and pairs → token ids, as sentence-transformers tokenizes them, without its padding and locks.

`RawTokenizer` drives the `tokenizers` library itself, one instance per thread: transformers' wrapper sets
truncation on a shared instance at every call, which is slow and fails under concurrency. Tokenizers that are
not of that library are in pipeline_tokenizing.py. Knows nothing of devices, queues or HTTP. Over 300 lines:
texts, pairs and pieces share the rules by which a text may be cut before it is tokenized.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

import numpy as np
import numpy.typing as npt

from infinity_emb.backends.base import Pair, Piece, TokenIds
from infinity_emb.errors import BadInput, InputTooLong
from infinity_emb.primitives import Truncation

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

# An over-long text is cut to so many characters per token of the limit before it is tokenized.
CHARS_PER_TOKEN = 16
# Tokens of the cut text that must lie behind the limit: what a cut changes is near the cut. That is not so
# inside a word that WordPiece takes for unknown when it is whole, or that Unigram splits from its end.
CUT_MARGIN_TOKENS = 64
# A piece cut from a text may have a few tokens more than it had there: its first word has lost its space, and
# byte-level tokens that reached over its ends are split up.
CUT_SLACK_TOKENS = 4
# What is tokenized at once: two seconds and 300 MB where every character is a token.
MAX_CHARS_READ = 2**20


class Tokens(NamedTuple):
    """One text or pair as the model reads it."""

    ids: TokenIds  # (n,) int32
    type_ids: TokenIds | None = None  # (n,) int32; None for a single text, whose segment ids are all 0


class Tokenize(Protocol):
    """Texts or pairs → token ids; safe to call from several threads.

    truncation_side: where the model cuts.
    """

    truncation_side: str

    def __call__(
        self, inputs: Sequence[str | Pair], *, prompt: str, truncation: Truncation, max_tokens: int | None
    ) -> list[Tokens]:
        """Raises InputTooLong where nothing may be cut, and BadInput for what has no token.

        prompt: put before a text, or before the query of a pair.
        max_tokens: where they are cut, special tokens included; None never cuts.
        """


class RawTokenizer:
    """Tokenizes on any number of threads; each has its own copy of the tokenizer.

    tokenizer: as sentence-transformers set it up, normalizers and post-processor included.
    truncation_side: where the model cuts unless told otherwise.
    adds_special_tokens: whether single texts get the model's start and end tokens.
    allows_empty: whether a text may have no token at all.
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
        self, inputs: Sequence[str | Pair], *, prompt: str, truncation: Truncation, max_tokens: int | None
    ) -> list[Tokens]:
        """As `Tokenize` says; all inputs are texts, or all are pairs."""
        tokenizer = self.own_tokenizer()
        self._check_room(tokenizer, max_tokens, is_pair=isinstance(inputs[0], Pair))
        limit = _Limit(max_tokens, self.truncation_side if truncation in ("model", "off") else truncation)
        limit.set_in(tokenizer)
        if isinstance(inputs[0], Pair):
            pairs = [(prompt + query, document) for query, document in cast("Sequence[Pair]", inputs)]
            return self._tokenize_pairs(tokenizer, pairs, limit, may_cut=truncation != "off")
        texts = [prompt + text for text in cast("Sequence[str]", inputs)]
        if max_tokens is None:
            encodings = self._encode(tokenizer, texts)
        elif truncation == "off":
            encodings = self._encode_whole(tokenizer, texts, max_tokens)
        else:
            encodings = self._encode_cut(tokenizer, texts, limit)
        all_ids = [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
        if not self._allows_empty:
            check_not_empty(all_ids)
        return [Tokens(ids) for ids in all_ids]

    def split(self, text: str, *, prompt: str, max_tokens: int, is_alone: bool = True) -> list[Piece]:
        """As `Split` says; a cut falls before a word where the word is shorter than a piece."""
        tokenizer = self.own_tokenizer()
        tokenizer.no_truncation()
        num_around = len(self._encode(tokenizer, [prompt])[0].ids) + CUT_SLACK_TOKENS if is_alone else 0
        size = max_tokens - num_around
        if size < 1:
            raise BadInput(f"leaves no room for a text: {num_around} of {max_tokens} tokens are the prompt's")
        encoding = _encode(tokenizer, [text], with_word_ids=True, add_special_tokens=False)[0]
        if len(encoding.ids) <= size + is_alone * CUT_SLACK_TOKENS:
            return [Piece(0, len(text), len(encoding.ids))]
        firsts = _piece_starts(encoding, size)
        offsets = encoding.offsets  # made anew whenever it is asked for
        starts = [0, *(offsets[first][0] for first in firsts[1:])]
        counts = np.diff([*firsts, len(encoding.ids)]).tolist()
        return [Piece(*each) for each in zip(starts, [*starts[1:], len(text)], counts, strict=True)]

    def offsets(self, text: str) -> tuple[list[tuple[int, int]], int]:
        """The character range of each token of a whole text, special tokens included as empty ranges; and
        how many tokens the text has of its own."""
        encoding = self.encode_uncut(text)
        return list(encoding.offsets), len(encoding.ids)

    def encode_uncut(self, text: str, *, add_special_tokens: bool = True) -> Encoding:
        """All tokens of a text and their places; with the special ones that the model's texts get, if any."""
        tokenizer = self.own_tokenizer()
        tokenizer.no_truncation()
        add_special_tokens = add_special_tokens and self._adds_special_tokens
        return _encode(tokenizer, [text], with_word_ids=True, add_special_tokens=add_special_tokens)[0]

    def _encode(
        self, tokenizer: Tokenizer, texts: list[str], *, with_word_ids: bool = False
    ) -> list[Encoding]:
        return _encode(
            tokenizer, texts, with_word_ids=with_word_ids, add_special_tokens=self._adds_special_tokens
        )

    def own_tokenizer(self) -> Tokenizer:
        """This thread's copy, which may be set to cut."""
        tokenizer: Tokenizer | None = getattr(self._per_thread, "tokenizer", None)
        if tokenizer is None:
            from tokenizers import Tokenizer

            tokenizer = Tokenizer.from_str(self._serialized)
            tokenizer.no_padding()
            self._per_thread.tokenizer = tokenizer
        return tokenizer

    def _check_room(self, tokenizer: Tokenizer, max_tokens: int | None, *, is_pair: bool) -> None:
        """The library cuts nothing where the limit has no room for the special tokens."""
        num_special = tokenizer.num_special_tokens_to_add(is_pair) if self._adds_special_tokens else 0
        if max_tokens is not None and max_tokens < num_special:
            raise BadInput(
                f"cannot be cut at {max_tokens} tokens: {num_special} are special ones; ask for more"
            )

    def _encode_whole(self, tokenizer: Tokenizer, texts: list[str], max_tokens: int) -> list[Encoding]:
        encodings = self._encode(tokenizer, texts)
        for position, encoding in enumerate(encodings):
            if encoding.overflowing:
                raise too_long(_num_tokens_uncut(encoding, tokenizer), max_tokens, position)
        return encodings

    def _encode_cut(self, tokenizer: Tokenizer, texts: list[str], limit: _Limit) -> list[Encoding]:
        """Cut long texts before tokenizing them, so that a megabyte of words costs milliseconds."""
        assert limit.max_tokens is not None
        max_chars = min(limit.max_tokens * CHARS_PER_TOKEN, MAX_CHARS_READ)
        if limit.side != "right" or max(map(len, texts), default=0) <= max_chars:
            return self._encode(tokenizer, texts)
        starts = [_cut_at_space(text, max_chars) for text in texts]
        encodings = self._encode(tokenizer, starts, with_word_ids=True)
        for position, (text, start) in enumerate(zip(texts, starts, strict=True)):
            num_chars = len(start)
            while num_chars < len(text) and not self._is_cut_safe(
                encodings[position], tokenizer, limit.max_tokens
            ):
                num_chars = min(num_chars * 4, len(text))
                start = _cut_at_space(text, num_chars)
                encodings[position] = self._encode(tokenizer, [start], with_word_ids=True)[0]
        return encodings

    def _is_cut_safe(self, encoding: Encoding, tokenizer: Tokenizer, max_tokens: int) -> bool:
        """Whether the kept tokens end so far before the cut that more text would not change them."""
        if _num_tokens_uncut(encoding, tokenizer) < max_tokens + CUT_MARGIN_TOKENS:
            return False
        return self._is_bpe or _last_word(encoding) < _last_word(encoding.overflowing[-1])

    def _tokenize_pairs(
        self, tokenizer: Tokenizer, pairs: list[tuple[str, str]], limit: _Limit, *, may_cut: bool
    ) -> list[Tokens]:
        """Each text alone and without special tokens, a query that many pairs share once; then the
        tokenizer's own last step puts the two together.

        The library is not told the limit: it would keep every combination of what it cuts off of one text
        with what it cuts off of the other, gigabytes where both are long.
        """
        tokenizer.no_truncation()
        cut = limit if may_cut else _Limit(None, limit.side)
        queries = list(dict.fromkeys(query for query, _ in pairs))
        query_parts = dict(zip(queries, self._encode_parts(tokenizer, queries, cut), strict=True))
        document_parts = self._encode_parts(tokenizer, [document for _, document in pairs], cut)
        num_special = tokenizer.num_special_tokens_to_add(True)
        tokens = []
        for position, ((query, _), document_part) in enumerate(zip(pairs, document_parts, strict=True)):
            parts = (query_parts[query], document_part)
            counts = (len(parts[0].encoding.ids), len(parts[1].encoding.ids))
            num_tokens = sum(counts) + num_special
            encoding = tokenizer.post_process(parts[0].encoding, parts[1].encoding)
            if limit.max_tokens is None or num_tokens <= limit.max_tokens:
                tokens.append(_pair_tokens(encoding))
            elif may_cut:
                kept = self._shares(tokenizer, parts, max(0, limit.max_tokens - num_special))
                tokens.append(_pair_tokens(encoding, _kept_places(encoding, counts, kept, limit.side)))
            else:
                raise too_long(num_tokens, limit.max_tokens, position)
        check_not_empty([each.ids for each in tokens])
        return tokens

    def _encode_parts(self, tokenizer: Tokenizer, texts: list[str], limit: _Limit) -> list[_Part]:
        """Whole texts without special tokens; of one that is far over the limit, enough of its start."""
        max_chars = (
            None if limit.max_tokens is None else min(limit.max_tokens * CHARS_PER_TOKEN, MAX_CHARS_READ)
        )
        if max_chars is None or limit.side != "right" or max(map(len, texts)) <= max_chars:
            encodings = _encode(tokenizer, texts, add_special_tokens=False)
            return [_Part(text, encoding, len(text)) for text, encoding in zip(texts, encodings, strict=True)]
        assert limit.max_tokens is not None
        parts = []
        for text in texts:
            num_chars = max_chars
            while True:
                start = _cut_at_space(text, num_chars)
                encoding = _encode(tokenizer, [start], with_word_ids=True, add_special_tokens=False)[0]
                if len(start) == len(text) or self._is_part_enough(encoding, limit.max_tokens):
                    break
                num_chars *= 4
            parts.append(_Part(text, encoding, len(start)))
        return parts

    def _shares(self, tokenizer: Tokenizer, parts: tuple[_Part, _Part], num_places: int) -> tuple[int, int]:
        """How many tokens of each text are kept: the longer one is cut first.

        Where both are cut, they have half of the places each, and the longer one has the odd place.
        """
        first, second = (len(part.encoding.ids) for part in parts)
        if 2 * min(first, second) <= num_places:
            return (first, num_places - first) if first <= second else (num_places - second, second)
        half = num_places // 2
        texts = [part.text for part in parts]
        is_readable = max(map(len, texts)) <= MAX_CHARS_READ
        if num_places % 2 and is_readable and not all(part.is_whole for part in parts):
            first, second = (len(each.ids) for each in _encode(tokenizer, texts, add_special_tokens=False))
        return (num_places - half, half) if first > second else (half, num_places - half)

    def _is_part_enough(self, part: Encoding, max_tokens: int) -> bool:
        """Whether what any cut keeps of it ends so far before its end that more text would not change it."""
        if len(part.ids) < max_tokens + CUT_MARGIN_TOKENS:
            return False
        word = part.word_ids[max_tokens]
        return self._is_bpe or (word is not None and word < _last_word(part))


class _Part(NamedTuple):
    """One text of a pair, or its first `num_chars` characters, without special tokens."""

    text: str
    encoding: Encoding
    num_chars: int

    @property
    def is_whole(self) -> bool:
        return self.num_chars == len(self.text)


class _Limit(NamedTuple):
    """Where texts are cut, and on which side."""

    max_tokens: int | None
    side: str

    def set_in(self, tokenizer: Tokenizer) -> None:
        if self.max_tokens is None:
            tokenizer.no_truncation()
        else:
            tokenizer.enable_truncation(self.max_tokens, direction=self.side)


def too_long(num_tokens: int, max_tokens: int, position: int) -> InputTooLong:
    """The error about a text that may not be cut."""
    return InputTooLong(
        f"has {num_tokens} tokens, the limit is {max_tokens};"
        " shorten it, or allow it to be cut with truncate=true",
        position=position,
    )


def _encode(
    tokenizer: Tokenizer, texts: list[str], *, with_word_ids: bool = False, add_special_tokens: bool = True
) -> list[Encoding]:
    check_can_be_read(texts)
    encode = tokenizer.encode_batch if with_word_ids else tokenizer.encode_batch_fast
    try:
        return encode(texts, add_special_tokens=add_special_tokens)
    except (TypeError, UnicodeEncodeError) as exc:
        raise BadInput(f"a text is not valid Unicode ({exc}); remove lone surrogates from it") from exc


def check_can_be_read(texts: Sequence[str]) -> None:
    """Raises BadInput for a text that takes a tokenizer seconds and gigabytes.

    One that is cut at its end is not concerned: only its start is read.
    """
    longest = max(map(len, texts), default=0)
    if longest > MAX_CHARS_READ:
        raise BadInput(
            f"a text of {longest} characters would have to be read whole, the limit is {MAX_CHARS_READ};"
            " split it, or let it be cut at its end"
        )


def check_not_empty(all_ids: Sequence[TokenIds]) -> None:
    """Raises BadInput for a text without a token, which has no vector."""
    for position, ids in enumerate(all_ids):
        if not len(ids):
            raise BadInput("has no token: it is empty and this tokenizer adds nothing", position=position)


def _pair_tokens(encoding: Encoding, places: slice | npt.NDArray[np.intp] = slice(None)) -> Tokens:
    ids, type_ids = (np.array(each, dtype=np.int32) for each in (encoding.ids, encoding.type_ids))
    return Tokens(ids[places], type_ids[places])


def _kept_places(
    encoding: Encoding, counts: tuple[int, int], kept: tuple[int, int], side: str
) -> npt.NDArray[np.intp]:
    """All special tokens, and so many of each text's `counts` tokens; `side` is the one that is cut."""
    is_kept = np.array(encoding.special_tokens_mask) == 1  # (n,)
    places = np.split(np.flatnonzero(~is_kept), [counts[0]])  # of each text; the first one stands first
    for of_text, count in zip(places, kept, strict=True):
        is_kept[of_text[:count] if side == "right" else of_text[len(of_text) - count :]] = True
    return np.flatnonzero(is_kept)


def _piece_starts(encoding: Encoding, size: int) -> list[int]:
    """The tokens at which pieces of at most `size` tokens start: where a word does, else a character."""
    words, offsets = encoding.word_ids, encoding.offsets
    firsts = [0]
    while firsts[-1] + size < len(words):
        latest = firsts[-1] + size
        candidates = range(latest, firsts[-1], -1)
        at_word = (at for at in candidates if words[at] != words[at - 1])
        at_character = (at for at in candidates if offsets[at][0] >= offsets[at - 1][1])
        firsts.append(next(itertools.chain(at_word, at_character), latest))
    return firsts


def _num_tokens_uncut(encoding: Encoding, tokenizer: Tokenizer) -> int:
    num_special = sum(encoding.special_tokens_mask)
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
