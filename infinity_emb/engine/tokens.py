"""Tokenize texts and decode token ids with one model's tokenizer, without its network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from infinity_emb.engine.checks import check_texts, list_values
from infinity_emb.engine.gate import RequestGate
from infinity_emb.engine.slot import ModelSlot
from infinity_emb.errors import BadInput, ModelNotDeployedError
from infinity_emb.items import count_request_chars
from infinity_emb.preprocessing.prompts import choose_prompt
from infinity_emb.preprocessing.token_ids import check_ids
from infinity_emb.preprocessing.vocabulary import Token, Vocabulary

# Limits per request, prompts included: a token is an object, far larger than its text.
MAX_TOKENIZED_CHARS = 500_000
MAX_DECODED_IDS = 500_000


class Tokenized(NamedTuple):
    """A text with its prompt, and its tokens, whose offsets are relative to `text`."""

    text: str
    tokens: list[Token]


class TokenizerService:
    """Tokenize and decode on the model's encoding threads."""

    def __init__(self, slot: ModelSlot, gate: RequestGate) -> None:
        self._slot = slot
        self._gate = gate

    async def tokenize(
        self, texts: Iterable[str], *, add_special_tokens: bool = True, prompt_name: str | None = None
    ) -> list[Tokenized]:
        """Return the tokens of each text with its prompt, in order; nothing is truncated.

        Raises BadInput, ModelNotDeployedError, Overloaded and EngineNotReady.
        """
        texts = list_values(texts, name="texts")
        check_texts(texts, name="texts")
        prompt = choose_prompt(self._slot.info, prompt_name=prompt_name).text
        num_chars = count_request_chars(texts, prompt)
        if num_chars > MAX_TOKENIZED_CHARS:
            raise BadInput(
                f"the texts have {num_chars} characters with their prompts, the limit is"
                f" {MAX_TOKENIZED_CHARS}; send fewer or shorter ones"
            )
        async with self._gate.request(len(texts)) as open_model:
            vocabulary = self._require_vocabulary(open_model.model.vocabulary)
            return await open_model.threads.run(
                lambda: [
                    Tokenized(text, vocabulary.tokenize(text, add_special_tokens=add_special_tokens))
                    for text in (prompt + text for text in texts)
                ],
                num_chars=num_chars,
                num_inputs=len(texts),
            )

    async def decode(self, ids: Sequence[Sequence[int]], *, skip_special_tokens: bool = True) -> list[str]:
        """Return the text of each list of token ids, in order.

        Raises BadInput for an id that is not in the vocabulary, ModelNotDeployedError, Overloaded and
        EngineNotReady.
        """
        num_ids = sum(map(len, ids))
        if num_ids > MAX_DECODED_IDS:
            raise BadInput(f"the request has {num_ids} ids, the limit is {MAX_DECODED_IDS}; send fewer")

        def decode(vocabulary: Vocabulary) -> list[str]:
            for position, token_ids in enumerate(ids):
                check_ids(token_ids, vocabulary.size, position)
            return [
                vocabulary.decode(token_ids, skip_special_tokens=skip_special_tokens) for token_ids in ids
            ]

        async with self._gate.request(len(ids)) as open_model:
            vocabulary = self._require_vocabulary(open_model.model.vocabulary)
            return await open_model.threads.run(
                lambda: decode(vocabulary), num_chars=num_ids, num_inputs=len(ids)
            )

    def _require_vocabulary(self, vocabulary: Vocabulary | None) -> Vocabulary:
        if vocabulary is None:
            raise ModelNotDeployedError(
                f"model {self._slot.name!r} has no tokenizer to call; use another model"
            )
        return vocabulary
