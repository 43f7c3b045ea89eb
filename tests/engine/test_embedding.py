"""Embed texts: outputs, dimensions, truncation and prompts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from infinity_emb.backends import fake
from infinity_emb.engine.results import EmbedOptions
from infinity_emb.errors import (
    BadInput,
    InputTooLong,
    MatryoshkaDimError,
    ModelNotDeployedError,
)
from infinity_emb.preprocessing.prompts import MAX_PROMPT_CHARS
from infinity_emb.types import OutputName
from tests.support.event_loop import run
from tests.support.fake_engines import call, fake_engine, read_vector_lengths
from tests.support.recording_models import RecordingModels

LONG = "x" * (fake.MAX_TOKENS + 1)


def test_vectors_have_the_order_of_the_texts() -> None:
    vectors, num_tokens = call(fake_engine(), "embed", ["four", "a", "seventh", "a"])

    assert read_vector_lengths(vectors) == [4, 1, 7, 1]
    assert num_tokens == 13
    assert all(vector.shape == (13,) and vector.dtype == np.float32 for vector in vectors)


def test_an_empty_text_has_a_vector_where_the_tokenizer_allows_it() -> None:
    vectors, num_tokens = call(fake_engine(), "embed", [""])
    assert (read_vector_lengths(vectors), num_tokens) == ([0], 0)


@pytest.mark.parametrize("dim", [1, 5, 13])
def test_truncated_vectors_are_rescaled_to_length_one(dim: int) -> None:
    vectors, _ = call(fake_engine(), "embed", ["four", "seventh"], matryoshka_dim=dim)

    assert [vector.shape for vector in vectors] == [(dim,)] * 2
    if dim < 13:
        assert np.allclose([np.linalg.norm(vector) for vector in vectors], 1)


def test_late_interaction_models_return_an_array_per_text() -> None:
    vectors, _ = call(fake_engine("kind=multivector"), "embed", ["ab", "c"], matryoshka_dim=4)

    assert [vector.shape for vector in vectors] == [(2, 4), (1, 4)]
    assert np.allclose(np.linalg.norm(vectors[0], axis=1), 1)


def test_sparse_models_do_not_return_arrays() -> None:
    with pytest.raises(ModelNotDeployedError, match=r"does not have the outputs 'dense'; it has 'sparse'"):
        call(fake_engine("kind=sparse"), "embed", ["a"])


def test_several_outputs_come_from_one_forward_pass() -> None:
    async def main() -> None:
        async with fake_engine("kind=embedder") as engine:
            outputs: tuple[OutputName, ...] = ("sparse", "dense", "multivector", "dense")
            answer = await engine.encode(["aab", "c"], EmbedOptions(outputs=outputs, dimensions=2))
            assert engine.status().worker.num_items == 2
            assert answer.num_tokens == 4
            assert [vector.tolist() for vector in answer.dense or ()] == [[pytest.approx(0.5**0.5)] * 2] * 2
            assert [rows.shape for rows in answer.multivector or ()] == [(3, 2), (1, 2)]
            assert [(row.indices.tolist(), row.values.tolist()) for row in answer.sparse or ()] == [
                ([97, 98], [2, 1]),
                ([99], [1]),
            ]
            assert answer.spans is None

    run(main())


@pytest.mark.parametrize(
    ("kind", "first"), [("embedder", "dense"), ("sparse", "sparse"), ("multivector",) * 2]
)
def test_the_default_output_is_the_first_of_the_model(kind: str, first: str) -> None:
    answer = call(fake_engine(f"kind={kind}"), "encode", ["a"])
    assert [name for name in ("dense", "sparse", "multivector") if getattr(answer, name) is not None] == [
        first
    ]


@pytest.mark.parametrize(
    ("kind", "outputs"),
    [
        ("auto", ("sparse",)),
        ("sparse", ("dense",)),
        ("multivector", ("dense", "multivector")),
        ("embedder", ("chunks",)),
    ],
)
def test_an_output_that_the_model_does_not_have_is_refused(
    kind: str, outputs: tuple[OutputName, ...]
) -> None:
    with pytest.raises(ModelNotDeployedError, match=r"does not have the outputs .*; it has"):
        call(fake_engine(f"kind={kind}"), "encode", ["a"], EmbedOptions(outputs=outputs))


def test_a_text_over_the_limit_is_truncated_or_refused_as_requested() -> None:
    async def main() -> None:
        async with fake_engine() as engine:
            vectors, num_tokens = await engine.embed([LONG])
            assert (read_vector_lengths(vectors), num_tokens) == ([fake.MAX_TOKENS], fake.MAX_TOKENS)
            with pytest.raises(InputTooLong, match=r"input 2 has 8193 tokens, the limit is 8192"):
                await engine.embed(["a", "a", LONG], truncate=False)
            with pytest.raises(InputTooLong, match=r"input 1 "):
                await engine.encode(["a", LONG], EmbedOptions(truncation="off"))
            assert engine.status().num_requests == 0

    run(main())


@pytest.mark.parametrize("truncation", ["model", "left", "right", "off"])
def test_the_encoder_is_given_the_truncation_side(truncation: Any, models: RecordingModels) -> None:
    call(models.engine(), "encode", ["a"], EmbedOptions(truncation=truncation))
    [(_, options)] = models.encoded
    assert options.truncation == truncation


@pytest.mark.parametrize(
    ("given", "text", "task"),
    [
        ({}, "", None),
        ({"prompt": "mine: "}, "mine: ", None),
        ({"prompt_name": "query"}, "query: ", None),
        ({"input_type": "query"}, "query: ", "query"),
        ({"input_type": "search_query"}, "query: ", "query"),
        ({"input_type": "document"}, "", "document"),
        ({"input_type": "RETRIEVAL_PASSAGE"}, "", "document"),
        ({"input_type": "query", "prompt": ""}, "", "query"),
        ({"input_type": "document", "prompt_name": "query"}, "query: ", "document"),
    ],
)
def test_prompts_and_tasks_follow_the_options(
    given: dict[str, str], text: str, task: str | None, models: RecordingModels
) -> None:
    """The rules themselves are tested in test_prompts.py."""
    vectors, num_tokens = call(models.engine("kind=embedder"), "embed", ["four", "a"], **given)
    answer = call(models.engine("kind=embedder"), "encode", ["four", "a"], EmbedOptions(**given))

    assert read_vector_lengths(vectors) == read_vector_lengths(answer.dense) == [len(text) + 4, len(text) + 1]
    assert num_tokens == answer.num_tokens == 2 * len(text) + 5
    assert [(options.prompt, options.task) for _, options in models.encoded] == [(text, task)] * 2


def test_the_default_prompt_is_prepended_to_texts_and_pairs(models: RecordingModels) -> None:
    default = {"prompts": {"usual": "as usual: "}, "default_prompt_name": "usual"}

    assert read_vector_lengths(call(models.engine(info=default), "embed", ["four"])[0]) == [14]
    call(models.engine("kind=classifier", default), "classify", sentences=["four"])
    call(models.engine("kind=reranker", default), "rerank", query="q", docs=["d"])
    assert [options.prompt for _, options in models.encoded] == ["as usual: "] * 3


@pytest.mark.parametrize("given", [{"prompt_name": "poem"}, {"input_type": "poem"}])
def test_an_unknown_prompt_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(BadInput, match=r"'poem'.*'query'"):
        call(fake_engine("kind=embedder"), "embed", ["a"], **given)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [("p" * (MAX_PROMPT_CHARS + 1), "has 100001 characters, the limit is 100000"), (5, "is int, not a text")],
)
def test_prompts_have_a_limit(prompt: Any, words: str) -> None:
    async def main() -> None:
        async with fake_engine("kind=embedder") as engine:
            for task, arguments in (
                ("embed", {"sentences": ["a"]}),
                ("rerank", {"query": "q", "docs": ["a"]}),
            ):
                with pytest.raises(BadInput, match=f"prompt {words}"):
                    await getattr(engine, task)(**arguments, prompt=prompt)

    run(main())


@pytest.mark.parametrize(
    "sentences", [[], (), "one text", None, 5, {"a"}, ["a", 5], [None], b"bytes", [["a"]]]
)
def test_anything_but_a_list_of_texts_is_refused(sentences: Any) -> None:
    async def main() -> None:
        async with fake_engine() as engine:
            with pytest.raises(BadInput, match="sentences"):
                await engine.embed(sentences)

    run(main())


@pytest.mark.parametrize("dim", [-1, 0, 14])
def test_dimensions_that_the_model_does_not_have_are_refused(dim: int) -> None:
    async def main() -> None:
        async with fake_engine() as engine:
            with pytest.raises(MatryoshkaDimError, match=rf"dimensions={dim} .* between 1 and 13"):
                await engine.embed(["a"], matryoshka_dim=dim)

    run(main())
