"""Keep the first tokens of a text, as Cohere's and vLLM's limits per document do."""

from __future__ import annotations

from infinity_emb.preprocessing.text_truncation import CHARS_PER_TOKEN, CUT_MARGIN_TOKENS
from infinity_emb.preprocessing.vocabulary import Vocabulary

_MAX_TOKENS_PER_CHAR = 4  # of tokenizers that read the bytes of UTF-8


def keep_first_tokens(text: str, max_tokens: int | None, vocabulary: Vocabulary) -> str:
    """Return the text up to the end of its `max_tokens`-th token; special tokens do not count.

    Raises BadInput for a text that is not valid Unicode.
    """
    if max_tokens is None or len(text) * _MAX_TOKENS_PER_CHAR <= max_tokens:
        return text
    num_chars, is_whole = max_tokens * CHARS_PER_TOKEN, False
    while not is_whole:
        is_whole = num_chars >= len(text)
        tokens = vocabulary.tokenize(text[:num_chars], add_special_tokens=False)
        if len(tokens) >= max_tokens + CUT_MARGIN_TOKENS:  # the kept tokens are far enough from the cut
            break
        num_chars *= 4
    if len(tokens) <= max_tokens:
        return text
    last = tokens[max_tokens - 1]
    if last.span is not None:
        return text[: last.span[1]]
    return vocabulary.decode([token.id for token in tokens[:max_tokens]])
