"""The tokens of a sentence-transformers model: its vocabulary, by whatever tokenizer it has, and their rows.

Knows nothing of the ways into a model, or of how it is computed.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, cast

from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules import Router, Transformer
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from infinity_emb.backends.base import Token, Vocabulary
from infinity_emb.backends.torch_models import input_module, tasks_of
from infinity_emb.primitives import ModelKind
from infinity_emb.tokenizing import RawTokenizer
from infinity_emb.vocabulary import RawVocabulary


def vocabulary_of(model: BaseModel) -> Vocabulary | None:
    """Of the module that texts enter, a router's first one; None where it has a tokenizer of its own kind."""
    entered = _text_module(model)
    tokenizer: Any = getattr(entered, "tokenizer", None)
    if isinstance(tokenizer, Tokenizer):  # of a static model, which adds no special tokens
        return RawVocabulary(RawTokenizer(tokenizer, adds_special_tokens=False), _num_rows(entered))
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return RawVocabulary(RawTokenizer(backend), _num_rows(entered))
    return PythonVocabulary(tokenizer, _num_rows(entered))


def has_token_rows(model: BaseModel, kind: ModelKind) -> bool:
    """Whether each text, whatever its route, leaves the network as a row per token."""
    first: Any = model[0]
    routes: list[Any] = list(first.sub_modules.values()) if isinstance(first, Router) else [[first]]
    return kind in (ModelKind.embedder, ModelKind.multivector) and all(
        isinstance(route[0], Transformer) and route[0].module_output_name == "token_embeddings"
        for route in routes
    )


class PythonVocabulary:
    """Of a tokenizer of transformers that is not of the `tokenizers` library; one thread at a time.

    It does not tell where a token stands in the text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, num_rows: int | None) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self.size = len(tokenizer) if num_rows is None else min(len(tokenizer), num_rows)

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[Token]:
        """As `Vocabulary` says."""
        with self._lock:
            encoding = self._tokenizer(
                text, add_special_tokens=add_special_tokens, return_special_tokens_mask=True, verbose=False
            )
            ids = cast("list[int]", encoding["input_ids"])
            names = self._tokenizer.convert_ids_to_tokens(ids)
        mask = encoding["special_tokens_mask"]
        return [Token(*each, None) for each in zip(ids, names, map(bool, mask), strict=True)]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """As `Vocabulary` says."""
        with self._lock:
            return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))


def _text_module(model: BaseModel) -> object:
    for task in (None, *tasks_of(model)):
        try:
            return input_module(model, task)
        except ValueError:  # a router without a default route
            continue
    return None


def _num_rows(entered: object) -> int | None:
    """Rows of the table of words; None where the network does not tell."""
    table: Any = getattr(entered, "embedding", None)  # of a static model
    if isinstance(entered, Transformer):
        try:
            table = entered.model.get_input_embeddings()
        except (NotImplementedError, AttributeError):  # of a network with two towers
            return None
    weight = getattr(table, "weight", None)
    return None if weight is None else int(weight.shape[0])
