"""Read token ids that a client sends instead of a text.

Ids of the model's vocabulary are used as they are; ids of OpenAI's models are decoded to text first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from infinity_emb.errors import BadInput, StartupError
from infinity_emb.items import InputOptions, RequestInput, TokenIdsInput
from infinity_emb.preprocessing.tokens import Tokenize, Tokens, too_long
from infinity_emb.preprocessing.vocabulary import Vocabulary
from infinity_emb.types import TokenIdPolicy

Decode = Callable[[Sequence[int]], str]
ValueT = TypeVar("ValueT")


class TokenIdReader:
    """Apply a model's policy for token ids.

    vocabulary: only checked, not kept, since the model may be unloaded; `read` takes it again.
    Raises StartupError if the policy needs a vocabulary or a library that is missing.
    """

    def __init__(self, policy: TokenIdPolicy, vocabulary: Vocabulary | None) -> None:
        self._policy = policy
        self._decode_openai = load_cl100k() if policy is TokenIdPolicy.cl100k else None
        if policy is TokenIdPolicy.model and vocabulary is None:
            raise StartupError("--token-ids model cannot be used: the model's tokenizer cannot be inspected")

    def read(
        self,
        inputs: Sequence[ValueT | TokenIdsInput],
        vocabulary: Vocabulary | None,
        policy: TokenIdPolicy | None = None,
    ) -> list[ValueT | str | TokenIdsInput]:
        """Return the inputs as the model takes them. Raise BadInput for ids that it does not accept.

        policy: replaces the one that the model is served with.
        """
        return [
            self._read(value, position, vocabulary, policy or self._policy)
            if isinstance(value, TokenIdsInput)
            else value
            for position, value in enumerate(inputs)
        ]

    def _read(
        self, value: TokenIdsInput, position: int, vocabulary: Vocabulary | None, policy: TokenIdPolicy
    ) -> str | TokenIdsInput:
        if not value.ids:
            raise BadInput("is an empty list of token ids", position=position)
        if policy is TokenIdPolicy.cl100k and self._decode_openai is not None:
            return _decode(self._decode_openai, value.ids, position)
        if policy is TokenIdPolicy.refuse or vocabulary is None:
            raise BadInput(
                "is a list of token ids, which this model does not take; send the text itself, or start with"
                " --token-ids",
                position=position,
            )
        check_ids(value.ids, vocabulary.size, position)
        return value


def check_ids(ids: Sequence[int], size: int, position: int) -> None:
    """Raise BadInput for an id outside 0..size-1."""
    wrong = next((token_id for token_id in ids if not 0 <= token_id < size), None)
    if wrong is not None:
        raise BadInput(
            f"has the token id {wrong}; this model's vocabulary has 0 to {size - 1}", position=position
        )


def load_cl100k() -> Decode:
    """Return a decoder for the token ids of OpenAI's embedding models. Raise StartupError."""
    try:
        import tiktoken
    except ImportError as exc:
        raise StartupError(
            "--token-ids cl100k needs the library tiktoken: pip install 'infinity-emb[tiktoken]'"
        ) from exc
    try:
        return tiktoken.get_encoding("cl100k_base").decode
    except Exception as exc:  # raised by whichever library downloads the file
        raise StartupError(
            "--token-ids cl100k needs the file cl100k_base.tiktoken, which tiktoken downloads when first used"
            f" or finds in the folder TIKTOKEN_CACHE_DIR: {type(exc).__name__}: {str(exc)[:200]}"
        ) from exc


def _decode(decode: Decode, ids: Sequence[int], position: int) -> str:
    try:
        return decode(ids)
    except (KeyError, OverflowError) as exc:
        raise BadInput(
            f"has a token id that is not one of OpenAI's cl100k_base ({exc}); send the text itself",
            position=position,
        ) from exc


def tokenize_with_ids(
    tokenize: Tokenize, inputs: Sequence[RequestInput], options: InputOptions, max_tokens: int | None
) -> list[Tokens]:
    """Tokenize texts or pairs, and take inputs that are token ids as they are, up to the limit.

    Ids are truncated on either side, even if that removes special tokens. Raises what `Tokenize` raises, and
    BadInput for ids with a prompt, which would have to be tokenized together with them.
    """
    texts = [item for item in inputs if not isinstance(item.value, TokenIdsInput)]
    tokens: list[Tokens] = []
    if texts:
        tokens = tokenize(texts, prompt=options.prompt, truncation=options.truncation, max_tokens=max_tokens)
    if len(texts) == len(inputs):
        return tokens
    tokens_of_texts = iter(tokens)
    return [
        _truncate_ids(item.value, item.position, options, max_tokens, tokenize.truncation_side)
        if isinstance(item.value, TokenIdsInput)
        else next(tokens_of_texts)
        for item in inputs
    ]


def _truncate_ids(
    value: TokenIdsInput, position: int, options: InputOptions, max_tokens: int | None, side: str
) -> Tokens:
    if options.prompt:
        raise BadInput(
            "consists of token ids, which no prompt can precede; ask for an empty prompt, or send the text"
            " itself",
            position=position,
        )
    ids = np.array(value.ids, dtype=np.int32)
    if max_tokens is None or len(ids) <= max_tokens:
        return Tokens(ids)
    if options.truncation == "off":
        raise too_long(len(ids), max_tokens, position)
    is_left = (side if options.truncation == "model" else options.truncation) == "left"
    return Tokens(ids[-max_tokens:] if is_left else ids[:max_tokens])
