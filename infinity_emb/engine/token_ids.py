"""Read the token ids of a request on the model's encoding threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from infinity_emb.engine.host import OpenModel
from infinity_emb.items import TokenIdsInput
from infinity_emb.preprocessing.token_ids import TokenIdReader
from infinity_emb.types import TokenIdPolicy

ValueT = TypeVar("ValueT")


class TokenIdService:
    """Apply the policy for token ids that a model is served with, or the one of a request."""

    def __init__(self, reader: TokenIdReader) -> None:
        self._reader = reader

    async def read(
        self,
        inputs: Sequence[ValueT | TokenIdsInput],
        open_model: OpenModel,
        policy: TokenIdPolicy | None = None,
    ) -> Sequence[ValueT | str | TokenIdsInput]:
        """Check token ids, or turn those of another vocabulary into texts; keep other inputs.

        policy: `model` where a route's ids are always the model's own.
        """
        if TokenIdsInput not in set(map(type, inputs)):
            return inputs
        vocabulary = open_model.model.vocabulary
        return await open_model.threads.run(
            lambda: self._reader.read(inputs, vocabulary, policy),
            num_chars=sum(len(value.ids) for value in inputs if isinstance(value, TokenIdsInput)),
            num_inputs=len(inputs),
        )
