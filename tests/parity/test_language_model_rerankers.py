"""Rerankers that ask a language model for yes or no, against CrossEncoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.cross_encoder.modules import LogitScore

from tests.parity import references
from tests.parity.conftest import Serve
from tests.parity.references import load_reranker
from tests.parity.serving import LONG, Served, assert_same_scores
from tests.support.small_models import save_small_yes_no_reranker

pytestmark = pytest.mark.model

QUERY = "word12 word7 word300 word41"
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'system' %}word100 {{ message.content }} "
    "{% elif message.role == 'query' %}word101 {{ message.content }} "
    "{% elif message.role == 'document' %}word102 {{ message.content }} "
    "{% endif %}{% endfor %}word103 word104"
)
# Architecture, and whether the folder brings a chat template.
MODELS = [
    ("qwen3", False),
    ("gemma3_text", False),
    ("mistral", False),
    ("qwen3", True),
    ("gemma3_text", True),
]

Compared = tuple[Served, CrossEncoder]


@pytest.fixture(
    scope="module", params=MODELS, ids=lambda model: f"{model[0]}-{'chat' if model[1] else 'plain'}"
)
def compared(request: pytest.FixtureRequest, serve: Serve, tmp_path_factory: Any) -> Compared:
    model_type, has_template = request.param
    folder = tmp_path_factory.mktemp("models") / "small-reranker"
    path = save_small_yes_no_reranker(folder, model_type, chat_template=TEMPLATE if has_template else None)
    served = serve(path)
    assert served.engine.info.kind == "reranker"
    assert served.attention == "packed", served.engine.info.attention_reason
    assert served.reads_tokens
    return served, load_reranker(path)


def test_scores_equal_cross_encoders(compared: Compared, texts: list[str]) -> None:
    served, model = compared
    assert_same_scores(served.scores(QUERY, texts), references.scores(model, QUERY, texts))


def test_raw_scores_are_the_log_odds_of_yes(compared: Compared, texts: list[str]) -> None:
    served, model = compared
    actual = served.scores(QUERY, texts[:8], raw_scores=True)
    assert_same_scores(actual, references.raw_scores(model, QUERY, texts[:8]))


def test_a_prompt_is_the_instruction(compared: Compared, texts: list[str]) -> None:
    served, model = compared
    prompt = "word77 word78 "
    expected = references.scores(model, QUERY, texts[:8], prompt=prompt)
    assert_same_scores(served.scores(QUERY, texts[:8], prompt=prompt), expected)
    without = references.scores(model, QUERY, texts[:8])
    assert abs(expected - without).max() > 1e-3, "this model does not read its prompt"


def test_long_pairs_are_cut_as_cross_encoder_cuts_them(compared: Compared, texts: list[str]) -> None:
    """With a chat template, what it puts behind the texts must survive the cut."""
    served, model = compared
    docs = [LONG, "", texts[1], LONG + " word9", texts[1]]
    requests = [(QUERY, None), (LONG, None), (QUERY, "word5 word6 ")]
    actual = [served.scores(query, docs, prompt=prompt) for query, prompt in requests]
    expected = [references.scores(model, query, docs, prompt=prompt) for query, prompt in requests]
    assert_same_scores(np.concatenate(actual), np.concatenate(expected))


@pytest.mark.parametrize("false_token", ["no", None])
def test_a_saved_pipeline_keeps_its_tokens_and_prompts(
    false_token: str | None, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    backbone = save_small_yes_no_reranker(tmp_path / "backbone", "qwen3", chat_template=TEMPLATE)
    transformer = Transformer(str(backbone), transformer_task="text-generation")
    assert transformer.tokenizer is not None
    ids = [token and transformer.tokenizer.convert_tokens_to_ids(token) for token in ("word9", false_token)]
    CrossEncoder(
        modules=[transformer, LogitScore(*ids)],
        prompts={"web": "word20 word21"},
        default_prompt_name="web",
        device="cpu",
    ).save_pretrained(str(tmp_path / "saved"))
    model = load_reranker(tmp_path / "saved")

    served = serve(tmp_path / "saved")

    assert served.engine.info.kind == "reranker"
    assert served.attention == "packed"
    for options in ({}, {"prompt": "word50"}):
        actual = served.scores(QUERY, texts[:8], **options)
        assert_same_scores(actual, references.scores(model, QUERY, texts[:8], **options))
