"""What one model does with pairs and labels: scores. The part of `AsyncEmbeddingEngine` that makes them.

Hop 3 of a request and hop 7 (activation, order); between them every method is `RunningModel.compute`. Knows
nothing of HTTP or of any compute library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from infinity_emb.backends.base import Input, InputOptions, Pair, Rows
from infinity_emb.completion import gather_or_cancel
from infinity_emb.computed import Computed
from infinity_emb.embedding import best_first
from infinity_emb.errors import BadInput, ServingError
from infinity_emb.one_model import OneModel, check_texts
from infinity_emb.primitives import ClassifyReturnType, ModelKind, RerankReturnType, Truncation
from infinity_emb.prompts import Prompt, check_prompt, choose_prompt
from infinity_emb.scoring import cosine_scores, sparse_scores


class ScoringTasks(OneModel):
    """Ranking and classifying."""

    async def rerank(
        self,
        *,
        query: str,
        docs: list[str],
        raw_scores: bool = False,
        top_n: int | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        truncation: Truncation = "model",
        max_tokens: int | None = None,
    ) -> tuple[list[RerankReturnType], int]:
        """Documents by how well they answer the query, best first.

        A reranker scores each pair as `CrossEncoder.predict` does; an embedder by the cosine, a sparse model
        by the dot product, a late-interaction model by MaxSim of query and document.
        raw_scores: leave out the model's activation function.
        top_n: only so many of the best; None and 0 are all.
        prompt: the instruction of a reranker that takes one, or what an embedder puts before the query.
        max_tokens: the limit of a pair, or of an embedder's texts, where it is to be below the model's.
        Returns the documents and the number of tokens that were read.
        Raises as `embed` does.
        """
        self._running.check_can("rerank")
        if not isinstance(query, str):
            raise BadInput(f"query is {type(query).__name__}, not a text")
        check_texts(docs, name="docs")
        check_prompt(prompt)
        how = InputOptions(truncation=truncation, max_tokens=max_tokens)
        async with self._running.admitted(len(docs)):
            if self.info.kind is ModelKind.reranker:
                chosen = choose_prompt(self.info, prompt=prompt, prompt_name=prompt_name)
                pairs = [Pair(query, document) for document in docs]
                how = replace(how, prompt=chosen.text)
                scores, num_tokens = await self._score_pairs(pairs, how, raw_scores=raw_scores)
            else:
                asked = choose_prompt(self.info, prompt=prompt, prompt_name=prompt_name, input_type="query")
                scores, num_tokens = await self._compare(query, docs, asked, how)
        ranked = best_first(scores, top_n)
        return [RerankReturnType(score, docs[index], index) for index, score in ranked], num_tokens

    async def classify(
        self,
        *,
        sentences: Sequence[str | tuple[str, str]],
        raw_scores: bool = False,
        truncation: Truncation = "model",
        max_tokens: int | None = None,
    ) -> tuple[list[list[ClassifyReturnType]], int]:
        """All labels of each text, or of each pair of texts, the most likely first.

        raw_scores: logits instead of the softmax, or the sigmoid where several labels may hold.
        max_tokens: the limit of a text or pair, where it is to be below the model's.
        Returns the labels, and the number of tokens that were read. Raises as `embed` does.
        """
        self._running.check_can("classify")
        inputs = _texts_and_pairs(sentences)
        prompt = choose_prompt(self.info).text
        how = InputOptions(prompt=prompt, truncation=truncation, max_tokens=max_tokens)
        async with self._running.admitted(len(inputs)):
            rows, num_tokens = await self._classify_inputs(inputs, how)
            scores = rows if raw_scores else self._running.model.activate(rows)
        return [self._labelled(row) for row in scores], num_tokens

    async def _score_pairs(
        self, pairs: Sequence[Input], how: InputOptions, *, raw_scores: bool
    ) -> tuple[Rows, int]:
        """(N,) float32 scores of pairs, and tokens."""
        computed = await self._running.compute(pairs, how)
        rows: Rows = computed.columns["dense"]  # (N, 1)
        scores = rows if raw_scores else self._running.model.activate(rows)
        return scores[:, 0], int(computed.num_tokens.sum())

    async def _compare(
        self, query: str, docs: list[str], prompt: Prompt, how: InputOptions
    ) -> tuple[Rows, int]:
        """(N,) float32 similarities of a query and documents by their vectors, and tokens."""
        output = self.info.outputs[0]
        asked, told = (
            replace(how, prompt=each.text, task=each.task, outputs=(output,))
            for each in (prompt, choose_prompt(self.info, input_type="document"))
        )
        if output == "multivector":
            first = await self._compute_query(query, asked)
            told = replace(told, outputs=("maxsim",), query_rows=first.columns["multivector"][0])
            second = await self._running.compute(docs, told)
            scores: Rows = second.columns["maxsim"][:, 0]
        else:
            first, second = await gather_or_cancel(
                [self._compute_query(query, asked), self._running.compute(docs, told)]
            )
            compare = sparse_scores if output == "sparse" else cosine_scores
            scores = compare(first.columns[output][0], second.columns[output])
        return scores, int(first.num_tokens.sum() + second.num_tokens.sum())

    async def _compute_query(self, query: str, how: InputOptions) -> Computed:
        """Errors do not call it input 0, which is the first document."""
        try:
            return await self._running.compute([query], how)
        except ServingError as exc:
            if exc.position is None:
                raise
            raise type(exc)(f"query {exc.reason}") from exc

    async def _classify_inputs(self, inputs: list[str | Pair], how: InputOptions) -> tuple[Rows, int]:
        """(N, L) float32 logits and tokens; texts and pairs, which are read differently, side by side."""
        parts = [
            [at for at, each in enumerate(inputs) if isinstance(each, Pair) is is_pair]
            for is_pair in (False, True)
        ]
        parts = [part for part in parts if part]
        answers = await gather_or_cancel(
            self._running.compute([inputs[at] for at in part], how, places=part) for part in parts
        )
        rows = np.empty((len(inputs), len(self.info.labels)), dtype=np.float32)
        for part, answer in zip(parts, answers, strict=True):
            rows[part] = answer.columns["dense"]
        return rows, sum(int(answer.num_tokens.sum()) for answer in answers)

    def _labelled(self, scores: Rows) -> list[ClassifyReturnType]:
        return [{"label": self.info.labels[index], "score": score} for index, score in best_first(scores)]


def _texts_and_pairs(sentences: Sequence[str | tuple[str, str]]) -> list[str | Pair]:
    """Raises BadInput unless `sentences` is a list of one or more texts and pairs of texts."""
    if isinstance(sentences, str) or not isinstance(sentences, Sequence):
        raise BadInput(
            f"sentences must be a list of texts and pairs of texts, not {type(sentences).__name__}"
        )
    inputs: list[Any] = [
        Pair(*each) if isinstance(each, tuple) and len(each) == 2 else each for each in sentences
    ]
    for side in Pair._fields:
        check_texts([getattr(each, side) if isinstance(each, Pair) else each for each in inputs])
    return inputs
