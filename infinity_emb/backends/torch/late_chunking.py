"""Find the tokens of each text that late chunking joined. Pure functions over offsets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from infinity_emb.errors import BadInput


def find_token_spans(
    joined: str, offsets: Sequence[tuple[int, int]], texts: Sequence[str], position: int
) -> tuple[tuple[int, int], ...]:
    """Return the range of tokens that begin in each text.

    joined: a prompt, then all texts.
    offsets: character range of each token of `joined`; empty for a special token.
    position: of the first text, for errors.
    Raises BadInput for a text in which no token begins.
    """
    begins = np.array([_find_begin(joined, first, last) for first, last in offsets])
    start = len(joined) - sum(map(len, texts))
    spans = []
    for text_position, text in enumerate(texts, position):
        inside = np.flatnonzero((begins >= start) & (begins < start + len(text)))
        if not len(inside):
            raise BadInput(
                "has no token that begins in it, so there is nothing to average", position=text_position
            )
        spans.append((int(inside[0]), int(inside[-1]) + 1))
        start += len(text)
    return tuple(spans)


def _find_begin(joined: str, first: int, last: int) -> int:
    """Return where a token's word begins, since many tokens include the space before it; -1 if special."""
    if last <= first:
        return -1
    token = joined[first:last]
    return min(first + len(token) - len(token.lstrip()), last - 1)
