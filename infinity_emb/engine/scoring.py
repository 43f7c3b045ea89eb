"""Rank documents and classify texts with one model, by its scoring head or by the vectors of an embedder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from infinity_emb.concurrency import gather_or_cancel
from infinity_emb.engine.checks import check_capability, check_texts, list_values
from infinity_emb.engine.gate import RequestGate
from infinity_emb.engine.host import OpenModel
from infinity_emb.engine.results import ClassifyOptions, RerankOptions, rank_scores
from infinity_emb.engine.slot import ModelSlot
from infinity_emb.engine.token_ids import TokenIdService
from infinity_emb.errors import QUERY_POSITION, BadInput, ModelNotDeployedError
from infinity_emb.items import (
    Float32Array,
    Input,
    InputOptions,
    Pair,
    RequestInput,
    TokenIdsInput,
    count_request_chars,
    number_inputs,
)
from infinity_emb.postprocessing import cosine_scores, sparse_scores
from infinity_emb.preprocessing.first_tokens import keep_first_tokens
from infinity_emb.preprocessing.prompts import check_prompt, choose_prompt
from infinity_emb.types import ClassifyReturnType, ModelInfo, ModelKind, RerankReturnType

# Up to this many scores are ranked on the event loop, in some milliseconds.
MAX_INLINE_SCORES = 2**12


class Scorer:
    """Compute scores with one model."""

    def __init__(self, slot: ModelSlot, gate: RequestGate, token_ids: TokenIdService) -> None:
        self._slot = slot
        self._gate = gate
        self._token_ids = token_ids

    async def rerank(
        self, query: str, documents: Iterable[str], options: RerankOptions
    ) -> tuple[list[RerankReturnType], int]:
        """Rank documents by relevance to the query, best first; return them and the number of tokens read.

        Raises as `AsyncEmbeddingEngine.embed` does.
        """
        check_capability(self._slot, "rerank")
        if not isinstance(query, str):
            raise BadInput(f"query is {type(query).__name__}, not a text")
        texts = list_values(documents, name="docs")
        check_texts(texts, name="docs")
        check_prompt(options.prompt)
        is_pair = self._slot.info.kind is ModelKind.reranker
        score = _score_pairs if is_pair else _compare_vectors
        num_query_chars = len(options.prompt or "") + len(query)
        num_chars = count_request_chars(texts) + num_query_chars * (len(texts) if is_pair else 1)
        async with self._gate.request(len(texts), num_chars) as open_model:
            first, others = await _cut_texts(query, texts, options, open_model)
            scores, num_tokens = await score(first, others, options, open_model)
        ranked = rank_scores(scores, options.top_n)
        return [RerankReturnType(score, texts[index], index) for index, score in ranked], num_tokens

    async def classify(
        self, sentences: Iterable[str | tuple[str, str] | TokenIdsInput], options: ClassifyOptions
    ) -> tuple[list[list[ClassifyReturnType]], int]:
        """Score all labels of each text or pair, most likely first; return them and the number of tokens.

        Raises as `AsyncEmbeddingEngine.embed` does.
        """
        check_capability(self._slot, "classify")
        inputs = parse_inputs(sentences)
        input_options = InputOptions(
            prompt=choose_prompt(self._slot.info).text,
            truncation=options.truncation,
            max_tokens=options.max_tokens,
        )
        num_chars = count_request_chars(inputs, input_options.prompt)
        async with self._gate.request(len(inputs), num_chars) as open_model:
            inputs = await self._token_ids.read(inputs, open_model, options.token_ids)
            logits, num_tokens = await _classify(inputs, input_options, open_model)
            scores = logits if options.raw_scores else open_model.model.activate(logits)
            labels = self._slot.info.labels
            if scores.size <= MAX_INLINE_SCORES:
                return _rank_labels(labels, scores), num_tokens
            ranked = await open_model.threads.run(
                lambda: _rank_labels(labels, scores), num_chars=scores.size, num_inputs=len(inputs)
            )
            return ranked, num_tokens


async def _cut_texts(
    query: str, documents: Sequence[str], options: RerankOptions, open_model: OpenModel
) -> tuple[str, Sequence[str]]:
    """Cut the query and the documents to the numbers of tokens that the request allows each of them."""
    max_query, max_document = options.max_query_tokens, options.max_document_tokens
    if max_query is None and max_document is None:
        return query, documents
    vocabulary = open_model.model.vocabulary
    if vocabulary is None:
        raise ModelNotDeployedError(
            f"model {open_model.model.info.source!r} has no tokenizer to cut texts with; leave out the limits"
            " of the query and of documents"
        )
    return await open_model.threads.run(
        lambda: (
            keep_first_tokens(query, max_query, vocabulary),
            [keep_first_tokens(document, max_document, vocabulary) for document in documents],
        ),
        num_chars=len(query) + count_request_chars(documents),
        num_inputs=len(documents),
    )


async def _score_pairs(
    query: str, documents: Sequence[str], options: RerankOptions, open_model: OpenModel
) -> tuple[Float32Array, int]:
    """Return (N,) float32 scores of a cross-encoder and the number of tokens."""
    model = open_model.model
    prompt = choose_prompt(model.info, prompt=options.prompt, prompt_name=options.prompt_name)
    outputs = await open_model.runner.run(
        _number_documents([Pair(query, document) for document in documents], options),
        InputOptions(prompt=prompt.text, truncation=options.truncation, max_tokens=options.max_tokens),
    )
    logits: Float32Array = outputs.by_name["dense"]  # (N, 1)
    scores = logits if options.raw_scores else model.activate(logits)
    return scores[:, 0], int(outputs.num_tokens.sum())


async def _compare_vectors(
    query: str, documents: Sequence[str], options: RerankOptions, open_model: OpenModel
) -> tuple[Float32Array, int]:
    """Return (N,) float32 similarities of the vectors of an embedder and the number of tokens."""
    runner, output = open_model.runner, open_model.model.info.outputs[0]
    query_options, document_options = _resolve_sides(options, open_model.model.info)
    # Errors must not name the query as input 0, which is the first document.
    query_inputs = [RequestInput(query, QUERY_POSITION)]
    inputs = _number_documents(documents, options)
    if output == "multivector":
        first = await runner.run(query_inputs, query_options)
        second = await runner.run(
            inputs,
            replace(document_options, outputs=("maxsim",), query_vectors=first.by_name["multivector"][0]),
        )
        scores: Float32Array = second.by_name["maxsim"][:, 0]
    else:
        first, second = await gather_or_cancel(
            [runner.run(query_inputs, query_options), runner.run(inputs, document_options)]
        )
        compare = sparse_scores if output == "sparse" else cosine_scores
        scores = compare(first.by_name[output][0], second.by_name[output])
    return scores, int(first.num_tokens.sum() + second.num_tokens.sum())


def _number_documents(documents: Sequence[Input], options: RerankOptions) -> list[RequestInput]:
    positions = range(len(documents)) if options.positions is None else options.positions
    return list(map(RequestInput, documents, positions))


def _resolve_sides(options: RerankOptions, info: ModelInfo) -> tuple[InputOptions, InputOptions]:
    """Return what an embedder computes for the query, and for the documents."""
    prompts = (
        choose_prompt(info, prompt=options.prompt, prompt_name=options.prompt_name, input_type="query"),
        choose_prompt(info, input_type="document"),
    )
    query_options, document_options = (
        InputOptions(
            prompt=prompt.text,
            task=prompt.task,
            truncation=options.truncation,
            max_tokens=options.max_tokens,
            outputs=info.outputs[:1],
        )
        for prompt in prompts
    )
    return query_options, document_options


async def _classify(
    inputs: Sequence[str | Pair | TokenIdsInput], options: InputOptions, open_model: OpenModel
) -> tuple[Float32Array, int]:
    """Return (N, L) float32 logits and the number of tokens; texts and pairs are encoded separately."""
    runner = open_model.runner
    numbered = number_inputs(inputs)
    groups = [
        [item for item in numbered if isinstance(item.value, Pair) is is_pair] for is_pair in (False, True)
    ]
    groups = [group for group in groups if group]
    all_outputs = await gather_or_cancel([runner.run(group, options) for group in groups])
    logits = np.empty((len(inputs), len(open_model.model.info.labels)), dtype=np.float32)
    for group, outputs in zip(groups, all_outputs, strict=True):
        logits[[item.position for item in group]] = outputs.by_name["dense"]
    return logits, sum(int(outputs.num_tokens.sum()) for outputs in all_outputs)


def _rank_labels(labels: Sequence[str], scores: Float32Array) -> list[list[ClassifyReturnType]]:
    return [[{"score": score, "label": labels[index]} for index, score in rank_scores(row)] for row in scores]


def parse_inputs(
    sentences: Iterable[str | tuple[str, str] | TokenIdsInput], *, name: str = "sentences"
) -> Sequence[str | Pair | TokenIdsInput]:
    """Raise BadInput unless `sentences` is a list of one or more texts, pairs of texts and token ids."""
    inputs: list[Any] = [
        Pair(*value) if isinstance(value, tuple) and len(value) == 2 else value
        for value in list_values(sentences, name=name, what="texts and pairs of texts")
    ]
    for side in Pair._fields:
        texts = [getattr(value, side) if isinstance(value, Pair) else value for value in inputs]
        check_texts(texts, name=name, allows_token_ids=True)
    return inputs
