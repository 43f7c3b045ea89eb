"""Give a padding token to tokenizers that have none, such as those of GPT-2, Llama and Mistral.

sentence-transformers pads even a single text, and transformers refuses to pad without such a token. Padding
is masked, so its token changes nothing.
"""

from __future__ import annotations

from typing import Any

from sentence_transformers.base.model import BaseModel

from infinity_emb.backends.torch.st_introspection import find_transformers

# Value of a classifier's `pad_token_id`: its head searches a text for the last other token, and must not pass
# over an end token that belongs to the text.
NO_TOKEN_ID = -1


def add_padding_tokens(model: BaseModel) -> None:
    """Use an existing token for padding where a tokenizer names none."""
    for transformer in find_transformers(model):
        tokenizer: Any = transformer.tokenizer
        if tokenizer is None or tokenizer.pad_token_id is not None:
            continue
        tokenizer.pad_token = _choose_token(tokenizer)
        config: Any = transformer.model.config
        if (
            transformer.transformer_task == "sequence-classification"
            and getattr(config, "pad_token_id", None) is None
        ):
            config.pad_token_id = NO_TOKEN_ID


def _choose_token(tokenizer: Any) -> str:
    named = (tokenizer.eos_token, tokenizer.unk_token, tokenizer.bos_token)
    return next((token for token in named if token is not None), None) or str(
        tokenizer.convert_ids_to_tokens(0)
    )
