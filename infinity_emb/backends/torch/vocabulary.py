"""Make the vocabulary of a sentence-transformers model from its tokenizer."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, cast

from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules import Router, Transformer
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from infinity_emb.backends.torch.st_introspection import get_input_module, get_tasks
from infinity_emb.preprocessing.fast_tokenizer import FastTokenizer
from infinity_emb.preprocessing.vocabulary import FastVocabulary, Token, Vocabulary
from infinity_emb.types import ModelKind


def make_vocabulary(model: BaseModel) -> Vocabulary | None:
    """Return the vocabulary of the first module for texts; None for an unknown kind of tokenizer."""
    module = _find_text_module(model)
    tokenizer: Any = getattr(module, "tokenizer", None)
    if isinstance(tokenizer, Tokenizer):  # a static model, which adds no special tokens
        return FastVocabulary(FastTokenizer(tokenizer, adds_special_tokens=False), count_embeddings(module))
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return FastVocabulary(FastTokenizer(backend), count_embeddings(module))
    return PythonVocabulary(tokenizer, count_embeddings(module))


def has_token_vectors(model: BaseModel, kind: ModelKind) -> bool:
    """Return whether the network has a vector per token for texts of all routes."""
    first: Any = model[0]
    routes: list[Any] = list(first.sub_modules.values()) if isinstance(first, Router) else [[first]]
    return kind in (ModelKind.embedder, ModelKind.multivector) and all(
        isinstance(route[0], Transformer) and route[0].module_output_name == "token_embeddings"
        for route in routes
    )


class PythonVocabulary:
    """Vocabulary of a tokenizer written in Python, which one thread at a time may use.

    Its tokens have no span.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, num_embeddings: int | None) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self.size = len(tokenizer) if num_embeddings is None else min(len(tokenizer), num_embeddings)

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[Token]:
        """Implement `Vocabulary`."""
        with self._lock:
            encoding = self._tokenizer(
                text, add_special_tokens=add_special_tokens, return_special_tokens_mask=True, verbose=False
            )
            ids = cast("list[int]", encoding["input_ids"])
            names = self._tokenizer.convert_ids_to_tokens(ids)
        mask = encoding["special_tokens_mask"]
        return [Token(*each, None) for each in zip(ids, names, map(bool, mask), strict=True)]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Implement `Vocabulary`."""
        with self._lock:
            return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))


def _find_text_module(model: BaseModel) -> object:
    for task in (None, *get_tasks(model)):
        try:
            return get_input_module(model, task)
        except ValueError:  # a router without a default route
            continue
    return None


def count_embeddings(module: object) -> int | None:
    """Return the size of the embedding table; None if it is unknown."""
    table: Any = getattr(module, "embedding", None)  # a static model
    if isinstance(module, Transformer):
        try:
            table = module.model.get_input_embeddings()
        except (NotImplementedError, AttributeError):  # a network with two towers
            return None
    weight = getattr(table, "weight", None)
    return None if weight is None else int(weight.shape[0])
