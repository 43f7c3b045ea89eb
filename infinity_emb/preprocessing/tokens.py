"""The interface of tokenizers, their result, and the checks that they share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from infinity_emb.errors import BadInput, InputTooLong
from infinity_emb.items import RequestInput, TokenIds
from infinity_emb.types import Truncation

# The longest text that is tokenized whole: it takes two seconds and 300 MB if every character is a token.
MAX_CHARS_READ = 2**20


class Tokens(NamedTuple):
    """Token ids of one text or pair."""

    ids: TokenIds  # (n,) int32
    type_ids: TokenIds | None = None  # (n,) int32; None for a single text, whose segment ids are all 0


class Tokenize(Protocol):
    """Convert texts or pairs to token ids; safe to call from several threads.

    truncation_side: the side on which the model truncates by default.
    """

    truncation_side: str

    def __call__(
        self, inputs: Sequence[RequestInput], *, prompt: str, truncation: Truncation, max_tokens: int | None
    ) -> list[Tokens]:
        """Return the tokens of each input, in order.

        inputs: either texts or pairs.
        prompt: put before each text, or before the query of each pair.
        max_tokens: limit of each input, special tokens included; None means no limit.
        Raises InputTooLong if truncation is off and an input exceeds the limit, and BadInput for an input
        without tokens.
        """


def too_long(num_tokens: int, max_tokens: int, position: int) -> InputTooLong:
    """Return the error for an input that exceeds the limit while truncation is off."""
    return InputTooLong(
        f"has {num_tokens} tokens, the limit is {max_tokens};"
        " shorten it, or allow it to be cut with truncate=true",
        position=position,
    )


def check_not_empty(tokens: Iterable[Tokens], inputs: Sequence[RequestInput]) -> None:
    """Raise BadInput for an input without tokens, which has no vector."""
    for (ids, _), item in zip(tokens, inputs, strict=True):
        if not len(ids):
            raise BadInput(
                "has no token: it is empty and this tokenizer adds nothing", position=item.position
            )


def check_readable(texts: Sequence[str]) -> None:
    """Raise BadInput for a text that would take a tokenizer seconds and gigabytes.

    Texts that are truncated on the right are exempt: only their beginning is tokenized.
    """
    longest = max(map(len, texts), default=0)
    if longest > MAX_CHARS_READ:
        raise BadInput(
            f"a text of {longest} characters would have to be read whole, the limit is {MAX_CHARS_READ};"
            " split it, or let it be cut at its end"
        )
