"""What one model's tokenizer does by itself: texts → tokens, and ids → texts. Part of `AsyncEmbeddingEngine`.

Nothing is computed, so nothing waits for a device. Knows nothing of HTTP or of any tokenizer library.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from infinity_emb.backends.base import Token, Vocabulary
from infinity_emb.errors import BadInput, ModelNotDeployedError
from infinity_emb.one_model import OneModel, check_texts
from infinity_emb.prompts import choose_prompt
from infinity_emb.token_ids import check_ids

# Of one request, prompts included: a token is an object of its own, far larger than its text.
MAX_TOKENIZED_CHARS = 500_000
MAX_DECODED_IDS = 500_000


class Tokenized(NamedTuple):
    """A text and its tokens; `text` has the prompt before it, and the tokens' places are in it."""

    text: str
    tokens: list[Token]


class TokenTasks(OneModel):
    """Tokenizing and decoding."""

    @property
    def vocabulary(self) -> Vocabulary:
        """To be asked for by an admitted request. Raises ModelNotDeployedError where there is none."""
        vocabulary = self._running.model.vocabulary
        if vocabulary is None:
            raise ModelNotDeployedError(
                f"model {self._running.name!r} has no tokenizer that can be asked; ask another model"
            )
        return vocabulary

    async def tokenize(
        self, texts: Sequence[str], *, add_special_tokens: bool = True, prompt_name: str | None = None
    ) -> list[Tokenized]:
        """The tokens of each text with its prompt, in order; none is cut, whatever the model's limit is.

        Raises BadInput, ModelNotDeployedError, Overloaded, EngineNotReady.
        """
        check_texts(texts)
        prompt = choose_prompt(self.info, prompt_name=prompt_name).text
        num_chars = sum(map(len, texts)) + len(prompt) * len(texts)
        if num_chars > MAX_TOKENIZED_CHARS:
            raise BadInput(
                f"the texts have {num_chars} characters with their prompts, the limit is"
                f" {MAX_TOKENIZED_CHARS}; send fewer or shorter ones"
            )
        async with self._running.admitted(len(texts)):
            vocabulary = self.vocabulary
            return await self._running.run_on_thread(
                lambda: [
                    Tokenized(text, vocabulary.tokenize(text, add_special_tokens=add_special_tokens))
                    for text in (prompt + each for each in texts)
                ]
            )

    async def decode(self, ids: Sequence[Sequence[int]], *, skip_special_tokens: bool = True) -> list[str]:
        """The text of each list of ids, in order.

        Raises BadInput for an id that the vocabulary has not, ModelNotDeployedError, Overloaded and
        EngineNotReady.
        """
        num_ids = sum(map(len, ids))
        if num_ids > MAX_DECODED_IDS:
            raise BadInput(f"the request has {num_ids} ids, the limit is {MAX_DECODED_IDS}; send fewer")

        def decode(vocabulary: Vocabulary) -> list[str]:
            for position, each in enumerate(ids):
                check_ids(each, vocabulary.size, position)
            return [vocabulary.decode(each, skip_special_tokens=skip_special_tokens) for each in ids]

        async with self._running.admitted(len(ids)):
            vocabulary = self.vocabulary
            return await self._running.run_on_thread(lambda: decode(vocabulary))
