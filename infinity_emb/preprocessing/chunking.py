"""Split a text that exceeds a model's limit into pieces."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from infinity_emb.errors import BadInput

# Pieces of one request; each costs as much as a text, however short it is.
MAX_PIECES = 2048


def check_num_pieces(num_pieces: int, num_texts: int) -> None:
    """Raise BadInput for more pieces than the limit; texts that are not split have no limit."""
    if num_pieces > max(MAX_PIECES, num_texts):
        raise BadInput(
            f"the request would be cut into {num_pieces} pieces or more, the limit is {MAX_PIECES};"
            " send fewer or shorter texts at once, or ask for larger pieces or none"
        )


def find_piece_starts(
    word_ids: Sequence[int | None], offsets: Sequence[tuple[int, int]], size: int
) -> list[int]:
    """Return the tokens at which pieces of at most `size` tokens start.

    A piece starts with a word if the word is shorter than a piece, else with a character.

    word_ids: index of each token's word.
    offsets: character range of each token.
    """
    starts = [0]
    while starts[-1] + size < len(word_ids):
        latest = starts[-1] + size
        candidates = range(latest, starts[-1], -1)
        at_word = (token for token in candidates if word_ids[token] != word_ids[token - 1])
        at_character = (token for token in candidates if offsets[token][0] >= offsets[token - 1][1])
        starts.append(next(itertools.chain(at_word, at_character), latest))
    return starts
