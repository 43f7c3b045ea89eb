"""Tokenize with the model's own preprocessing, for what `FastTokenizer` does not support.

That is tokenizers outside the `tokenizers` library, and chat templates.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from infinity_emb.errors import BadInput, InputTooLong
from infinity_emb.items import Pair, RequestInput
from infinity_emb.preprocessing.tokens import Tokens, check_not_empty, check_readable
from infinity_emb.types import Truncation


class SlowTokenizer:
    """Tokenize one input at a time, on one thread at a time.

    encode: text or pair, prompt → tokens, truncated at the model's limit.
    """

    def __init__(
        self, encode: Callable[[str | Pair, str], Tokens], *, truncation_side: str, lock: threading.Lock
    ) -> None:
        self._encode = encode
        self.truncation_side = truncation_side
        self._lock = lock

    def __call__(
        self, inputs: Sequence[RequestInput], *, prompt: str, truncation: Truncation, max_tokens: int | None
    ) -> list[Tokens]:
        """Implement `Tokenize`; also raise what `check_truncated` raises."""
        if truncation not in ("model", "off", self.truncation_side):
            raise BadInput(
                f"this model's texts can be cut on the {self.truncation_side} only, not on the {truncation}"
            )
        values: list[Any] = [item.value for item in inputs]
        for value in values:
            check_readable([value] if isinstance(value, str) else value)
        tokens = []
        for value in values:  # the lock is released in between, so that other threads can proceed
            with self._lock:
                tokens.append(self._encode(value, prompt))
        check_not_empty(tokens, inputs)
        for (ids, _), item in zip(tokens, inputs, strict=True):
            check_truncated(len(ids), max_tokens, truncation, item.position)
        return tokens


def check_truncated(num_tokens: int, max_tokens: int | None, truncation: Truncation, position: int) -> None:
    """Check a text that preprocessing has truncated at the model's limit against the request's limit.

    Raises InputTooLong with truncation off, even if the text just fills the limit: it may have been
    truncated. Raises BadInput for a text above the limit, which cannot be truncated once more.
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
            f"has {num_tokens} tokens, but this model's own preprocessing cannot cut it at {max_tokens};"
            " shorten it, or leave the limit to the model",
            position=position,
        )
