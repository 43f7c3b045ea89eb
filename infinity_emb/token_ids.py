"""Token ids that a request sends instead of a text: whose they may be, and what becomes of them.

The model's own are read as they are; OpenAI's become texts before anything else sees them. Knows nothing of
requests, or of what is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np

from infinity_emb.backends.base import Ids, Input, InputOptions, Pair, Vocabulary
from infinity_emb.errors import BadInput, StartupError
from infinity_emb.primitives import TokenIdsOf
from infinity_emb.tokenizing import Tokenize, Tokens, too_long

Decode = Callable[[Sequence[int]], str]


class TokenIdReader:
    """What a model does with token ids that are sent to it.

    vocabulary: of the model, which may be unloaded, so that it is given again to `read` and not kept.
    Raises StartupError where what is needed for it is missing.
    """

    def __init__(self, ids_of: TokenIdsOf, vocabulary: Vocabulary | None) -> None:
        self._ids_of = ids_of
        self._decode_openai = load_cl100k() if ids_of is TokenIdsOf.cl100k else None
        if ids_of is TokenIdsOf.model and vocabulary is None:
            raise StartupError(
                "--token-ids model cannot be used: the model has no tokenizer that can be asked"
            )

    def read(self, inputs: Sequence[str | Ids], vocabulary: Vocabulary | None) -> list[str | Ids]:
        """The inputs as the model takes them. Raises BadInput for ids that are not welcome, or not known."""
        return [
            self._read(each, at, vocabulary) if isinstance(each, Ids) else each
            for at, each in enumerate(inputs)
        ]

    def _read(self, given: Ids, position: int, vocabulary: Vocabulary | None) -> str | Ids:
        if not given.ids:
            raise BadInput("is an empty list of token ids", position=position)
        if self._decode_openai is not None:
            return _decoded(self._decode_openai, given.ids, position)
        if self._ids_of is TokenIdsOf.refuse or vocabulary is None:
            raise BadInput(
                "is a list of token ids, which this model does not take; send the text itself, or start with"
                " --token-ids",
                position=position,
            )
        check_ids(given.ids, vocabulary.size, position)
        return given


def check_ids(ids: Sequence[int], size: int, position: int) -> None:
    """Raises BadInput for an id that is not in 0..size-1."""
    wrong = next((each for each in ids if not 0 <= each < size), None)
    if wrong is not None:
        raise BadInput(
            f"has the token id {wrong}; this model's vocabulary has 0 to {size - 1}", position=position
        )


def load_cl100k() -> Decode:
    """What makes texts of the ids of OpenAI's embedding models. Raises StartupError."""
    try:
        import tiktoken
    except ImportError as exc:
        raise StartupError(
            "--token-ids cl100k needs the library tiktoken: pip install 'infinity-emb[tiktoken]'"
        ) from exc
    try:
        return tiktoken.get_encoding("cl100k_base").decode
    except Exception as exc:  # of whatever library fetches the file
        raise StartupError(
            "--token-ids cl100k needs the file cl100k_base.tiktoken, which tiktoken downloads when first used"
            f" or finds in the folder TIKTOKEN_CACHE_DIR: {type(exc).__name__}: {str(exc)[:200]}"
        ) from exc


def _decoded(decode: Decode, ids: Sequence[int], position: int) -> str:
    try:
        return decode(ids)
    except (KeyError, OverflowError) as exc:
        raise BadInput(
            f"has a token id that is not one of OpenAI's cl100k_base ({exc}); send the text itself",
            position=position,
        ) from exc


def tokens_of(
    tokenize: Tokenize, inputs: Sequence[Input], options: InputOptions, max_tokens: int | None
) -> list[Tokens]:
    """Texts or pairs as `tokenize` reads them; ids as they are, cut or refused at the limit as texts are.

    Ids are cut at either end, whatever token is there. Raises as `Tokenize` says, and BadInput for ids with a
    prompt, which would have to be tokenized with them.
    """
    places = [at for at, each in enumerate(inputs) if not isinstance(each, Ids)]
    texts = [cast("str | Pair", inputs[at]) for at in places]
    if len(texts) == len(inputs):
        return tokenize(texts, prompt=options.prompt, truncation=options.truncation, max_tokens=max_tokens)
    try:
        read = tokens_of(tokenize, texts, options, max_tokens) if texts else []
    except BadInput as exc:
        raise exc if exc.position is None else exc.moved_to(places[exc.position]) from exc
    tokens = dict(zip(places, read, strict=True))
    for at, each in enumerate(inputs):
        if isinstance(each, Ids):
            tokens[at] = _as_given(each, at, options, max_tokens, tokenize.truncation_side)
    return [tokens[at] for at in range(len(inputs))]


def _as_given(given: Ids, position: int, options: InputOptions, max_tokens: int | None, side: str) -> Tokens:
    if options.prompt:
        raise BadInput(
            "is token ids, before which no prompt can go; ask for an empty prompt, or send the text itself",
            position=position,
        )
    ids = np.array(given.ids, dtype=np.int32)
    if max_tokens is None or len(ids) <= max_tokens:
        return Tokens(ids)
    if options.truncation == "off":
        raise too_long(len(ids), max_tokens, position)
    is_left = (side if options.truncation == "model" else options.truncation) == "left"
    return Tokens(ids[-max_tokens:] if is_left else ids[:max_tokens])
