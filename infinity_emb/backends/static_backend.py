"""Texts → bags of token ids → means of a table's rows: what a static model computes, by numpy alone.

Measured against torch's embedding_bag on one core: a gather and a sum per text takes 2 to 3 times as long,
`np.add.reduceat` 10 to 40 times. The sums are a tenth to a quarter of what tokenizing takes, and a second
thread makes them slower, as it waits for Python. Knows nothing of files, queues or HTTP.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from infinity_emb.backends.base import Answers, Encoded, Input, InputOptions, Passages, Recipe, Rows, TokenIds
from infinity_emb.primitives import OutputName
from infinity_emb.token_ids import tokens_of
from infinity_emb.tokenizing import RawTokenizer

# Rows that are gathered at once, so that a long text needs no copy of a row for each of its tokens.
_MAX_GATHERED_ROWS = 4096
_NORM_FLOOR = 1e-12  # torch's `normalize` divides by no less


class StaticBackend:
    """Means of rows of one table.

    table: (V, D) float32.
    dimension: how many values of a vector are kept, D at most.
    """

    num_in_flight = 1
    shares_device = True

    def __init__(self, table: Rows, *, is_normalized: bool, dimension: int) -> None:
        self._table = table
        self._is_normalized = is_normalized
        self._dimension = dimension

    def prepare_thread(self) -> None:
        """Nothing to prepare."""

    def free_memory(self) -> None:
        """Nothing is kept."""

    def launch(self, batch: Sequence[Encoded], *, full_precision: bool = False) -> StaticLaunched:
        """Compute the vectors; they are float32 in any case, and no text's depends on its company."""
        names = {name for item in batch for name in item.recipe.outputs}
        answers: dict[OutputName, Any] = {}
        if "dense" in names:
            answers["dense"] = self._vectors([item.token_ids for item in batch])
        if "chunks" in names:
            answers["chunks"] = [self._vectors(_parts_of(item)) for item in batch]
        return StaticLaunched(answers)

    def _vectors(self, bags: Sequence[TokenIds]) -> Rows:
        rows = mean_rows(self._table, bags)  # (N, D)
        if self._is_normalized:
            rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _NORM_FLOOR)
        return rows[:, : self._dimension]


@dataclass(frozen=True, slots=True)
class StaticLaunched:
    """Answers that were ready on return."""

    answers: Answers

    def collect(self) -> Answers:
        """The answers."""
        return self.answers


def mean_rows(table: Rows, bags: Sequence[TokenIds]) -> Rows:
    """The mean of the rows that each bag names.

    table: (V, D) float32.
    bags: N arrays of row numbers in 0..V-1; of an empty one the mean is 0.
    Returns (N, D) float32. Raises IndexError for a row that is not there.
    """
    rows = np.zeros((len(bags), table.shape[1]), dtype=np.float32)
    for row, ids in zip(rows, bags, strict=True):
        for start in range(0, len(ids), _MAX_GATHERED_ROWS):
            row += np.add.reduce(table.take(ids[start : start + _MAX_GATHERED_ROWS], axis=0), axis=0)
    lengths = np.array([max(1, len(ids)) for ids in bags], dtype=np.float32)  # (N,)
    rows /= lengths[:, None]
    return rows


def _parts_of(item: Encoded) -> list[TokenIds]:
    return [item.token_ids[start:end] for start, end in item.spans or ()]


@dataclass(frozen=True, slots=True)
class StaticPrepare:
    """`Prepare` for texts and passages; safe to call from several threads.

    Passages are read one by one, each as a text without a prompt: no token changes another.
    """

    tokenize: RawTokenizer
    max_tokens: int | None

    def __call__(self, inputs: Sequence[Input], options: InputOptions) -> list[Encoded]:
        recipe = Recipe(outputs=options.outputs)
        if isinstance(inputs[0], Passages):
            return [self._read_passages(cast(Passages, each), options, recipe) for each in inputs]
        all_ids = self._read_texts(inputs, options)
        return [Encoded(ids, recipe=recipe) for ids in all_ids]

    def _read_passages(self, passages: Passages, options: InputOptions, recipe: Recipe) -> Encoded:
        all_ids = self._read_texts(passages.texts, replace(options, prompt=""))
        ends = np.cumsum([0, *map(len, all_ids)]).tolist()
        spans = tuple(itertools.pairwise(ends))
        return Encoded(np.concatenate(all_ids), recipe=recipe, spans=spans)

    def _read_texts(self, texts: Sequence[Input], options: InputOptions) -> list[TokenIds]:
        tokens = tokens_of(self.tokenize, texts, options, options.limit(self.max_tokens))
        return [each.ids for each in tokens]
