"""Texts and pairs → token ids by the model's own pipeline, for tokenizers that `RawTokenizer` cannot drive.

Those are tokenizers that are not of the `tokenizers` library, and chat templates. Knows nothing of the
pipeline but a function that tokenizes one input.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from infinity_emb.backends.base import Pair
from infinity_emb.errors import BadInput, InputTooLong
from infinity_emb.primitives import Truncation
from infinity_emb.tokenizing import Tokens, check_can_be_read, check_not_empty


class PipelineTokenizer:
    """Tokenizes one input at a time, one thread at a time, with the model's own preprocessing.

    encode: text or pair, prompt → tokens, cut at the limit; slow, and right by construction.
    """

    def __init__(
        self, encode: Callable[[str | Pair, str], Tokens], *, truncation_side: str, lock: threading.Lock
    ) -> None:
        self._encode = encode
        self.truncation_side = truncation_side
        self._lock = lock

    def __call__(
        self, inputs: Sequence[str | Pair], *, prompt: str, truncation: Truncation, max_tokens: int | None
    ) -> list[Tokens]:
        """As `Tokenize` says, with the exceptions of `check_cut_text`."""
        if truncation not in ("model", "off", self.truncation_side):
            raise BadInput(
                f"this model's texts can be cut on the {self.truncation_side} only, not on the {truncation}"
            )
        for given in inputs:
            check_can_be_read([given] if isinstance(given, str) else given)
        with self._lock:
            tokens = [self._encode(each, prompt) for each in inputs]
        check_not_empty([each.ids for each in tokens])
        for position, each in enumerate(tokens):
            check_cut_text(len(each.ids), max_tokens, truncation, position)
        return tokens


def check_cut_text(num_tokens: int, max_tokens: int | None, truncation: Truncation, position: int) -> None:
    """Of a text that the pipeline has cut at the model's limit; `max_tokens` may be below that.

    Raises InputTooLong where nothing may be cut, also for a text that fills the limit: it may have been cut.
    Raises BadInput for a text that would have to be cut once more.
    """
    if max_tokens is None:
        return
    if truncation == "off" and num_tokens >= max_tokens:
        raise InputTooLong(
            f"fills or exceeds the limit of {max_tokens} tokens;"
            " shorten it, or allow it to be cut with truncate=true",
            position=position,
        )
    if num_tokens > max_tokens:
        raise BadInput(
            f"has {num_tokens} tokens, and this model's own preprocessing cannot cut it at {max_tokens};"
            " shorten it, or leave the limit to the model",
            position=position,
        )
