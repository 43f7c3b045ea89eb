"""Compute a static model with numpy alone: the vector of a text is the mean of the table rows of its tokens.

Measured against torch's embedding_bag on one core: a gather and a sum per text takes 2 to 3 times as long,
`np.add.reduceat` 10 to 40 times. The sums take a tenth to a quarter of the time of tokenizing, and a second
thread makes them slower, as it waits for the interpreter's lock.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from infinity_emb.backends.base import FinishedBatch
from infinity_emb.items import (
    Encoded,
    Float32Array,
    ForwardSpec,
    InputOptions,
    LateChunkingInput,
    RequestInput,
    TokenIds,
)
from infinity_emb.preprocessing.fast_tokenizer import FastTokenizer
from infinity_emb.preprocessing.token_ids import tokenize_with_ids
from infinity_emb.types import OutputName

# Rows that are gathered at once, so that a long text does not need a copy of a row for each token.
_MAX_GATHERED_ROWS = 4096
_NORM_FLOOR = 1e-12  # the least divisor of torch's `normalize`


class StaticBackend:
    """Average rows of one table.

    table: (V, D) float32.
    dimension: number of values of a vector that are kept, at most D.
    """

    num_in_flight = 1
    shares_device = True

    def __init__(self, table: Float32Array, *, is_normalized: bool, dimension: int) -> None:
        self._table = table
        self._is_normalized = is_normalized
        self._dimension = dimension

    def prepare_thread(self) -> None:
        """Do nothing."""

    def free_memory(self) -> None:
        """Do nothing."""

    def launch(self, batch: Sequence[Encoded], *, full_precision: bool = False) -> FinishedBatch:
        """Compute float32 vectors; `full_precision` has no effect."""
        names = {name for item in batch for name in item.spec.outputs}
        outputs: dict[OutputName, Any] = {}
        if "dense" in names:
            outputs["dense"] = self._vectors([item.token_ids for item in batch])
        if "chunks" in names:
            bags = ([item.token_ids[start:end] for start, end in item.spans or ()] for item in batch)
            outputs["chunks"] = list(map(self._vectors, bags))
        return FinishedBatch(outputs)

    def _vectors(self, bags: Sequence[TokenIds]) -> Float32Array:
        rows = mean_rows(self._table, bags)  # (N, D)
        if self._is_normalized:
            rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _NORM_FLOOR)
        return rows[:, : self._dimension]


def mean_rows(table: Float32Array, bags: Sequence[TokenIds]) -> Float32Array:
    """Return the mean of the table rows of each bag.

    table: (V, D) float32.
    bags: N arrays of row indices in 0..V-1; the mean of an empty one is 0.
    Returns (N, D) float32. Raises IndexError for an index out of range.
    """
    rows = np.zeros((len(bags), table.shape[1]), dtype=np.float32)
    for row, ids in zip(rows, bags, strict=True):
        for start in range(0, len(ids), _MAX_GATHERED_ROWS):
            row += np.add.reduce(table.take(ids[start : start + _MAX_GATHERED_ROWS], axis=0), axis=0)
    lengths = np.array([max(1, len(ids)) for ids in bags], dtype=np.float32)  # (N,)
    rows /= lengths[:, None]
    return rows


@dataclass(frozen=True, slots=True)
class StaticEncoder:
    """`Encode` for texts and passages; safe to call from several threads.

    Passages are encoded one by one, each as a text without a prompt: tokens do not influence each other.
    """

    tokenize: FastTokenizer
    max_tokens: int | None

    def __call__(self, inputs: Sequence[RequestInput], options: InputOptions) -> list[Encoded]:
        spec = ForwardSpec(outputs=options.outputs)
        if isinstance(inputs[0].value, LateChunkingInput):
            return [
                self._read_passages(cast(LateChunkingInput, value), position, options, spec)
                for value, position in inputs
            ]
        all_ids = self._read_texts(inputs, options)
        return [
            Encoded(ids, spec=spec, position=given.position)
            for ids, given in zip(all_ids, inputs, strict=True)
        ]

    def _read_passages(
        self, passages: LateChunkingInput, position: int, options: InputOptions, spec: ForwardSpec
    ) -> Encoded:
        texts = [RequestInput(text, at) for at, text in enumerate(passages.texts, position)]
        all_ids = self._read_texts(texts, replace(options, prompt=""))
        ends = np.cumsum([0, *map(len, all_ids)]).tolist()
        spans = tuple(itertools.pairwise(ends))
        return Encoded(np.concatenate(all_ids), spec=spec, spans=spans, position=position)

    def _read_texts(self, texts: Sequence[RequestInput], options: InputOptions) -> list[TokenIds]:
        tokens = tokenize_with_ids(self.tokenize, texts, options, options.limit(self.max_tokens))
        return [each.ids for each in tokens]
