from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from infinity_emb.backends import fake
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.hub.version import model_version

ARGS = EngineArgs(model_name_or_path="debug", engine="debugengine")
INFO = fake.load_model(ARGS).info


@pytest.mark.parametrize(
    "change",
    [
        {"files_version": "a commit"},
        {"dtype": "bfloat16"},
        {"engine": "optimum"},
        {"graph": "onnx/model_qint8_avx512_vnni.onnx"},
        {"pooling": "cls"},
        {"max_tokens": 7},
        {"embedding_dimension": 7},
    ],
)
def test_what_changes_answers_is_another_version(change: dict[str, Any]) -> None:
    assert model_version(ARGS, replace(INFO, **change)) != model_version(ARGS, INFO)


def test_another_name_is_another_version() -> None:
    other = EngineArgs(model_name_or_path="debug?kind=embedder", engine="debugengine")
    assert model_version(other, INFO) != model_version(ARGS, INFO)


@pytest.mark.parametrize("change", [{"device": "cuda"}, {"attention": "padded"}, {"prompts": {"query": "q"}}])
def test_where_it_is_computed_and_prompts_that_a_key_holds_anyway_do_not_matter(
    change: dict[str, Any],
) -> None:
    assert model_version(ARGS, replace(INFO, **change)) == model_version(ARGS, INFO)
