"""Refuse texts with tokens that the network has no embedding for.

Tokens that were added to a tokenizer, but not to its network, have such ids. Computing them fails on a CPU,
and ends the process on CUDA.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules import Transformer

from infinity_emb.backends.base import Encode
from infinity_emb.backends.torch.vocabulary import count_embeddings
from infinity_emb.errors import BadInput
from infinity_emb.items import Encoded, InputOptions, RequestInput

logger = logging.getLogger("infinity_emb")

_MAX_SHOWN = 3


@dataclass(frozen=True, slots=True)
class KnownTokensEncoder:
    """Encode inputs, and raise BadInput for one with a token beyond the table of embeddings."""

    encode: Encode
    num_embeddings: int

    def __call__(self, inputs: Sequence[RequestInput], options: InputOptions) -> list[Encoded]:
        """Implement `Encode`."""
        encoded = self.encode(inputs, options)
        for item in encoded:
            largest = int(item.token_ids.max(initial=0))
            if largest >= self.num_embeddings:
                raise BadInput(
                    f"has the token id {largest}, but the network has embeddings for 0 to"
                    f" {self.num_embeddings - 1}; remove that token from the text",
                    position=item.position,
                )
        return encoded


def refuse_unknown_tokens(model: BaseModel, encode: Encode) -> Encode:
    """Return an encoder that checks ids, if the tokenizer has tokens that the network does not have."""
    transformer = model[0]
    num_embeddings = count_embeddings(transformer) if isinstance(transformer, Transformer) else None
    tokenizer: Any = getattr(transformer, "tokenizer", None)
    if num_embeddings is None or tokenizer is None:
        return encode
    added: dict[str, int] = getattr(tokenizer, "added_tokens_encoder", {})
    unknown = [f"{name!r} ({number})" for name, number in added.items() if number >= num_embeddings]
    if unknown:
        logger.warning(
            "the tokenizer has %d tokens that the network has no embedding for, such as %s: texts with them"
            " are refused",
            len(unknown),
            ", ".join(unknown[:_MAX_SHOWN]),
        )
    is_larger = unknown or len(tokenizer) > num_embeddings
    return KnownTokensEncoder(encode, num_embeddings) if is_larger else encode
