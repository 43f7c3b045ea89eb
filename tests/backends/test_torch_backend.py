"""What the torch backend does beyond parity: full precision on demand, and batches of many recipes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from infinity_emb.backends.base import Encoded, InputOptions, Recipe
from infinity_emb.backends.torch_backend import Pipeline, TorchBackend
from infinity_emb.backends.torch_doors import DoorMaker, OpenedModel
from infinity_emb.primitives import ModelKind
from tests.small_models import random_texts, save_small_model

pytestmark = pytest.mark.model


def opened(path: Path, dtype: torch.dtype = torch.float32) -> OpenedModel:
    model = SentenceTransformer(str(path), device="cpu", model_kwargs={"dtype": dtype})
    model.eval()
    return DoorMaker(Pipeline(model=model, layouts={}), ModelKind.embedder, ("dense",)).open()


def test_full_precision_computes_what_half_precision_cannot_hold(tmp_path: Path) -> None:
    """A weight of 60,000 is a number in float16 and twice of it is infinity."""
    path = save_small_model(tmp_path, "bert", normalize=False)
    half = opened(path, torch.float16)
    network = half.pipeline.model[0].model
    with torch.no_grad():
        network.encoder.layer[-1].intermediate.dense.bias.fill_(60_000)
        network.encoder.layer[-1].output.dense.weight.fill_(2)
    backend = TorchBackend(half.pipeline)
    batch = half.prepare(random_texts(2), InputOptions())

    rows = backend.launch(batch).collect()["dense"]
    exact = backend.launch(batch, full_precision=True).collect()["dense"]

    assert not np.isfinite(rows).all()
    assert np.isfinite(exact).all()
    assert next(half.pipeline.model.parameters()).dtype == torch.float16, "only a copy was converted"


def test_full_precision_of_a_float32_model_is_the_model_itself(tmp_path: Path) -> None:
    model = opened(save_small_model(tmp_path, "bert"))
    backend = TorchBackend(model.pipeline)
    batch = model.prepare(random_texts(3), InputOptions())

    expected = backend.launch(batch).collect()["dense"]

    assert np.array_equal(backend.launch(batch, full_precision=True).collect()["dense"], expected)


def test_items_of_many_recipes_each_get_their_own_answer(tmp_path: Path) -> None:
    """Prompts of different length cannot share a pass where pooling leaves the prompt out."""
    model = opened(save_small_model(tmp_path, "bert", include_prompt=False))
    backend = TorchBackend(model.pipeline)
    texts = random_texts(12)
    prompts = ["", "word1 ", "word1 word2 word3 "]
    batch = [
        model.prepare([text], InputOptions(prompt=prompts[number % 3]))[0]
        for number, text in enumerate(texts)
    ]

    together = backend.launch(batch).collect()["dense"]

    assert len({item.recipe for item in batch}) == 3
    alone = np.concatenate([backend.launch([item]).collect()["dense"] for item in batch])
    assert np.abs(together - alone).max() <= 1e-6


def test_an_output_that_an_item_did_not_ask_for_is_finite(tmp_path: Path) -> None:
    model = opened(save_small_model(tmp_path, "bert"))
    backend = TorchBackend(model.pipeline)
    dense = model.prepare(["word1 word2"], InputOptions())[0]
    tokens = Encoded(dense.token_ids, recipe=replace(Recipe(), outputs=("multivector",)))

    with pytest.raises(KeyError):  # a plain embedder leaves no mask, so it is never asked for that
        backend.launch([dense, tokens])
    chunks = Encoded(dense.token_ids, recipe=Recipe(outputs=("chunks",)), spans=((1, 2), (2, 3)))
    answers = backend.launch([dense, chunks]).collect()

    assert answers["dense"].shape == (2, 32)
    assert np.isfinite(answers["dense"]).all()
    assert [rows.shape for rows in answers["chunks"]] == [(0, 0), (2, 32)]
