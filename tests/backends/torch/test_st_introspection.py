"""What a loaded model says about itself, on modules that have only what is read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.modules import Pooling

from infinity_emb.backends.torch.st_introspection import (
    Expansion,
    count_prompt_tokens,
    depends_on_task,
    describe_pooling,
    excludes_prompt,
    get_activation,
    get_input_module,
    get_labels,
    get_max_tokens,
    get_sampling_rate,
    get_task_limit,
    get_tasks,
)
from infinity_emb.types import ModelKind


def make_model(*modules: torch.nn.Module) -> SentenceTransformer:
    return SentenceTransformer(modules=list(modules), device="cpu")


def make_router() -> SentenceTransformer:
    routes: dict[str, list[Any]] = {"query": [Pooling(4, "cls")], "document": [Pooling(4, "mean")]}
    return make_model(Router(routes, default_route="document"))


def test_the_first_module_of_a_router_is_that_of_the_route() -> None:
    router = make_router()
    assert get_input_module(router, "query").pooling_mode == "cls"
    assert get_input_module(router, None).pooling_mode == "mean"
    pooling = Pooling(4)
    assert get_input_module(make_model(pooling), "query") is pooling


def test_routes_are_tasks_on_which_outputs_depend() -> None:
    assert get_tasks(make_router()) == ("query", "document")
    assert depends_on_task(make_router())
    assert not depends_on_task(make_model(Pooling(4)))
    assert get_tasks(make_model(Pooling(4))) == ()


@pytest.mark.parametrize(("include_prompt", "excludes"), [(True, False), (False, True)])
def test_a_pooling_may_exclude_the_prompt(include_prompt: bool, excludes: bool) -> None:
    model = make_model(Pooling(4, "mean", include_prompt=include_prompt))
    assert excludes_prompt(model) == excludes
    assert describe_pooling(model) == "mean"


def test_several_pooling_modes_are_listed() -> None:
    assert describe_pooling(make_model(Pooling(4, ("cls", "mean")))) == "cls + mean"
    assert describe_pooling(make_model(torch.nn.Identity())) == "none"


@pytest.mark.parametrize(("limit", "expected"), [(None, None), (512, 512), (10**30, None)])
def test_the_placeholder_of_no_limit_is_none(limit: int | None, expected: int | None) -> None:
    assert get_max_tokens([SimpleNamespace(max_seq_length=limit)]) == expected


FIXED = {"strategy": "fixed", "length": 32}
GROWING = {"strategy": "other", "length": 32}


@pytest.mark.parametrize(
    ("task", "expansion", "query_length", "expected"),
    [
        (None, None, 16, 100),
        ("query", None, 16, 16),
        ("query", None, None, 100),
        ("document", None, 16, 50),
        ("document", FIXED, 16, 50),
        ("query", FIXED, None, 32),
        ("query", GROWING, None, 100),
        ("query", GROWING, 16, 32),
        ("query", GROWING, 64, 64),
    ],
)
def test_queries_and_documents_have_their_own_limits(
    task: str | None, expansion: Any, query_length: int | None, expected: int
) -> None:
    transformer: Any = SimpleNamespace(
        query_expansion=expansion, query_length=query_length, document_length=50
    )
    assert get_task_limit(transformer, task, 100) == expected


@pytest.mark.parametrize(
    ("named", "mask_id", "expected"), [("[X]", 4, 9), (None, 4, 4), (None, None, 2)], ids=str
)
def test_queries_are_expanded_with_the_named_token_or_mask_or_end(
    named: str | None, mask_id: int | None, expected: int
) -> None:
    tokenizer = SimpleNamespace(
        mask_token_id=mask_id, eos_token_id=2, convert_tokens_to_ids=lambda token: {"[X]": 9}[token]
    )
    transformer: Any = SimpleNamespace(
        query_expansion={"token": named, "length": 8, "attend": False}, tokenizer=tokenizer
    )
    assert Expansion.resolve(transformer) == Expansion(8, expected, False)
    transformer.query_expansion = None
    assert Expansion.resolve(transformer) is None


@pytest.mark.parametrize(("ids", "count"), [([1, 5, 6, 2], 3), ([1, 5, 6], 3), ([], 0)])
def test_an_end_token_does_not_count_as_the_prompts(ids: list[int], count: int) -> None:
    transformer: Any = SimpleNamespace(
        modality_config={"text": {}},
        preprocess=lambda texts: {"input_ids": torch.tensor([ids])},
        tokenizer=SimpleNamespace(all_special_ids=[1, 2]),
    )
    assert count_prompt_tokens(transformer, "query: ") == count
    transformer.modality_config = {"message": {}}
    assert count_prompt_tokens(transformer, "query: ") == 0


@pytest.mark.parametrize(
    ("problem_type", "num_labels", "name", "scores"),
    [
        (None, 2, "softmax", [0.5, 0.5]),
        (None, 1, "sigmoid", [0.5]),
        ("multi_label_classification", 2, "sigmoid", [0.5, 0.5]),
        ("regression", 1, "none", [0.0]),
    ],
)
def test_a_classifier_has_the_activation_of_transformers(
    problem_type: str | None, num_labels: int, name: str, scores: list[float]
) -> None:
    config = SimpleNamespace(problem_type=problem_type, num_labels=num_labels, id2label={0: "a", 1: "b"})
    model: Any = SimpleNamespace(config=config)
    found, activate = get_activation(model, ModelKind.classifier)
    assert found == name
    activated = activate(np.zeros((1, num_labels), dtype=np.float32))
    assert activated.dtype == np.float32
    assert activated.tolist() == [scores]
    assert get_labels(model, ModelKind.classifier) == ("a", "b")[:num_labels]


def test_an_embedder_has_no_activation_and_no_labels() -> None:
    model = make_model(Pooling(4))
    assert get_activation(model, ModelKind.embedder)[0] == "none"
    assert get_labels(model, ModelKind.embedder) == ()
    assert get_sampling_rate(model) is None
