"""Six models in one array, asked for everything at once: every answer equals its reference.

The references are computed before. A seeded order makes the traffic the same in every run; what shares a
batch with what is left to chance, which is the point.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from transformers import pipeline

from infinity_emb import AsyncEngineArray
from infinity_emb.engine.results import EmbedOptions
from tests.parity import references
from tests.parity.references import load_embedder, load_late_interaction, load_reranker, load_sparse_encoder
from tests.parity.serving import assert_same_scores, assert_same_vectors, engine_args
from tests.parity.test_m3 import ALL, Model, sparse_array
from tests.support.small_models import (
    random_texts,
    save_small_classifier,
    save_small_late_interaction,
    save_small_m3,
    save_small_model,
    save_small_splade,
    save_small_yes_no_reranker,
)

pytestmark = pytest.mark.model

TEXTS = random_texts(30, max_words=150, seed=11)
QUERIES = TEXTS[:3]
PROMPTS = {
    "query": "word1 word2 word3 ",
    "document": "word4 ",
    "clustering": "word5 word6 word7 word8 word9 ",
}
NUM_CLIENTS = 24
NUM_ROUNDS = 3


class Question(NamedTuple):
    """Something to ask of the array, and what must hold of the answer."""

    ask: Callable[[AsyncEngineArray], Awaitable[Any]]
    check: Callable[[Any], None]


def embed_question(model: str, texts: list[str], check: Callable[[Any], None], **options: Any) -> Question:
    return Question(lambda array: array[model].encode(texts, EmbedOptions(**options)), check)


def parts_of(texts: list[str]) -> list[slice]:
    """Requests of one text, of a few, and of many."""
    return [slice(0, 1), slice(3, 4), slice(5, 12), slice(12, 13), slice(0, len(texts))]


def embedder_questions(folder: Path) -> Iterator[Question]:
    """Queries, documents and prompts of different lengths, pooled without the prompt."""
    save_small_model(folder, "modernbert", prompts=PROMPTS, include_prompt=False)
    model = load_embedder(folder / "model")
    asked: list[tuple[dict[str, Any], Any]] = [
        ({}, model.encode),
        ({"input_type": "query"}, model.encode_query),
        ({"input_type": "document"}, model.encode_document),
    ]
    asked += [({"prompt_name": name}, model.encode) for name in PROMPTS]
    asked += [({"prompt": "word77 " * length}, model.encode) for length in (1, 4)]
    for options, encode in asked:
        given = {} if "input_type" in options else options
        expected = references.vectors(encode, TEXTS, **given)
        for part in parts_of(TEXTS):
            check = lambda answer, rows=expected[part]: assert_same_vectors(answer.dense, rows)  # noqa: E731
            yield embed_question("embedder", TEXTS[part], check, **options)
    short = references.vectors(model.encode, TEXTS)[:, :8]
    short /= np.linalg.norm(short, axis=1, keepdims=True)
    yield embed_question(
        "embedder", TEXTS, lambda answer: assert_same_vectors(answer.dense, short), dimensions=8
    )


def reranker_questions(name: str, folder: Path) -> Iterator[Question]:
    model = load_reranker(folder)
    for query in QUERIES:
        for prompt in (None, "word50 word51 "):
            expected = references.scores(model, query, TEXTS, prompt=prompt)
            for part in parts_of(TEXTS):

                def check(answer: Any, scores: Any = expected[part]) -> None:
                    assert [each.index for each in answer[0]] == (-scores).argsort(kind="stable").tolist()
                    assert_same_scores([each.relevance_score for each in answer[0]], -np.sort(-scores))

                def ask(array: AsyncEngineArray, given: Any = (query, TEXTS[part], prompt)) -> Any:
                    return array[name].rerank(query=given[0], docs=given[1], prompt=given[2])

                yield Question(ask, check)


def classifier_questions(folder: Path) -> Iterator[Question]:
    save_small_classifier(folder, "bert", num_labels=3)
    classify: Any = pipeline(
        "text-classification", str(folder), top_k=None, device="cpu", dtype=torch.float32
    )
    inputs: list[Any] = [text if at % 2 else (text, TEXTS[-at]) for at, text in enumerate(TEXTS)]
    for is_raw in (False, True):
        applied = {"function_to_apply": "none"} if is_raw else {}
        expected = []
        for each in inputs:
            given = each if isinstance(each, str) else {"text": each[0], "text_pair": each[1]}
            answer = classify(given, truncation=True, **applied)
            expected.append(
                {row["label"]: row["score"] for row in (answer[0] if len(answer) == 1 else answer)}
            )
        for part in parts_of(inputs):

            def check(answer: Any, labels: Any = expected[part]) -> None:
                actual = [{row["label"]: row["score"] for row in rows} for rows in answer[0]]
                names = sorted(labels[0])
                assert_same_scores(
                    [[each[name] for name in names] for each in actual],
                    [[each[name] for name in names] for each in labels],
                )

            def ask(array: AsyncEngineArray, given: Any = (inputs[part], is_raw)) -> Any:
                return array["classifier"].classify(sentences=given[0], raw_scores=given[1])

            yield Question(ask, check)


def sparse_questions(folder: Path) -> Iterator[Question]:
    save_small_splade(folder, "distilbert")
    model = load_sparse_encoder(folder / "model")
    for prompt in (None, "word9 "):
        expected = references.sparse_vectors(model.encode, TEXTS, prompt=prompt)
        for part in parts_of(TEXTS):
            check = lambda answer, rows=expected[part]: assert_same_vectors(sparse_array(answer.sparse), rows)  # noqa: E731
            yield embed_question("sparse", TEXTS[part], check, prompt=prompt)


def late_interaction_questions(folder: Path) -> Iterator[Question]:
    """Queries are padded for their expansion, documents packed, and scored for several queries at once."""
    save_small_late_interaction(
        folder,
        "bert",
        query_expansion={"strategy": "fixed", "length": 20, "attend": False, "token": None},
        document_length=90,
        skiplist_words=["word1", "word2"],
        prompts=PROMPTS,
    )
    model = load_late_interaction(folder / "model")
    documents = references.token_vectors(model.encode_document, TEXTS)
    queries = references.token_vectors(model.encode_query, TEXTS)
    expected = {None: references.token_vectors(model.encode, TEXTS), "query": queries, "document": documents}
    for input_type, rows in expected.items():
        for part in parts_of(TEXTS):
            check = lambda answer, rows=rows[part]: assert_same_vectors(answer.multivector, rows)  # noqa: E731
            yield embed_question("late", TEXTS[part], check, input_type=input_type)
    for number, query in enumerate(QUERIES):
        asked = [torch.from_numpy(queries[number])]
        scores = model.similarity(asked, [torch.from_numpy(each) for each in documents])[0].numpy()

        def check_scores(answer: Any, scores: Any = scores) -> None:
            actual = {each.index: each.relevance_score for each in answer[0]}
            assert_same_scores([actual[at] / 20 for at in range(len(TEXTS))], scores / 20)

        def ask(array: AsyncEngineArray, query: str = query) -> Any:
            return array["late"].rerank(query=query, docs=TEXTS)

        yield Question(ask, check_scores)


def m3_questions(folder: Path) -> Iterator[Question]:
    """Requests for one, two and all three answers meet in one queue."""
    expected = Model(save_small_m3(folder)).answers(TEXTS)
    for outputs in (ALL, ("dense",), ("sparse",), ("multivector",), ("dense", "sparse")):
        for part in parts_of(TEXTS):

            def check(answer: Any, part: slice = part, outputs: Any = outputs) -> None:
                if "dense" in outputs:
                    assert_same_vectors(answer.dense, expected.dense[part])
                if "sparse" in outputs:
                    assert_same_vectors(sparse_array(answer.sparse), expected.sparse[part])
                if "multivector" in outputs:
                    assert_same_vectors(answer.multivector, expected.multivector[part])

            yield embed_question("m3", TEXTS[part], check, outputs=outputs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    path: Path = tmp_path_factory.mktemp("models")
    return path


@pytest.fixture(scope="module")
def questions(folder: Path) -> list[Question]:
    save_small_classifier(folder / "reranker", "xlm-roberta")
    save_small_yes_no_reranker(folder / "yes-no-reranker", "qwen3")
    return [
        *embedder_questions(folder / "embedder"),
        *reranker_questions("reranker", folder / "reranker"),
        *reranker_questions("yes-no", folder / "yes-no-reranker"),
        *classifier_questions(folder / "classifier"),
        *sparse_questions(folder / "sparse"),
        *late_interaction_questions(folder / "late"),
        *m3_questions(folder / "m3"),
    ]


@pytest.mark.parametrize("batch_limits", [{}, {"batch_size": 5, "max_batch_tokens": 400}], ids=str)
def test_every_answer_equals_its_reference(
    batch_limits: dict[str, int], questions: list[Question], folder: Path
) -> None:
    paths = {
        "embedder": "embedder/model",
        "reranker": "reranker",
        "yes-no": "yes-no-reranker",
        "classifier": "classifier",
        "sparse": "sparse/model",
        "late": "late/model",
        "m3": "m3/model",
    }
    array = AsyncEngineArray.from_args(
        [engine_args(folder / path, served_model_name=name, **batch_limits) for name, path in paths.items()]
    )
    assert {engine.info.attention for engine in array} == {"packed"}
    asked = questions * NUM_ROUNDS
    random.Random(0).shuffle(asked)

    async def client(number: int) -> None:
        for question in asked[number::NUM_CLIENTS]:
            question.check(await question.ask(array))

    async def all_clients() -> None:
        async with array:
            await asyncio.gather(*(client(number) for number in range(NUM_CLIENTS)))

    asyncio.run(all_clients())
    assert len(asked) > 300
