"""Give a padding token to tokenizers that have none, such as those of GPT-2, Llama and Mistral.

sentence-transformers pads even a single text, and transformers refuses to pad without such a token. Padding
is masked, so any token will do; but it needs an embedding, which a token that was added only to the tokenizer
does not have.
"""

from __future__ import annotations

import math
from typing import Any

from sentence_transformers.base.model import BaseModel

from infinity_emb.backends.torch.st_introspection import find_transformers
from infinity_emb.backends.torch.vocabulary import count_embeddings

# `pad_token_id` for classifiers: the head looks for the last token with another id, and must not skip an end
# token that belongs to the text.
NO_TOKEN_ID = -1


def add_padding_tokens(model: BaseModel) -> None:
    """Use an existing token for padding where a tokenizer names none."""
    for transformer in find_transformers(model):
        tokenizer: Any = transformer.tokenizer
        size = count_embeddings(transformer) or math.inf
        if tokenizer is None or (tokenizer.pad_token_id is not None and tokenizer.pad_token_id < size):
            continue
        tokenizer.pad_token = _choose_token(tokenizer, size)
        config: Any = transformer.model.config
        if (
            transformer.transformer_task == "sequence-classification"
            and getattr(config, "pad_token_id", None) is None
        ):
            config.pad_token_id = NO_TOKEN_ID


def _choose_token(tokenizer: Any, size: float) -> str:
    ids = (tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id)
    known = [token_id for token_id in ids if token_id is not None and token_id < size]
    return str(tokenizer.convert_ids_to_tokens(known[0] if known else 0))
