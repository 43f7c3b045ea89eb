"""BGE-M3: a vector, weights of words and a vector per token, all from one forward pass.

sentence-transformers gives the first alone; the reference for the others follows the published paper in
plain torch over the same network, one text at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch.nn.functional import normalize

from infinity_emb.items import SparseVector
from infinity_emb.types import OutputName
from tests.parity import references
from tests.parity.conftest import Serve
from tests.parity.references import load_embedder
from tests.parity.serving import LONG, Array, Served, assert_same_vectors, spread_out
from tests.support.small_models import HIDDEN_SIZE, VOCABULARY_SIZE, save_small_m3

pytestmark = pytest.mark.model

ALL: tuple[OutputName, ...] = ("dense", "sparse", "multivector")
SPECIAL_IDS = (0, 1, 2, 3)  # unknown, padding, start and end: tokens that have no weight


class Reference(NamedTuple):
    dense: Array  # (N, H)
    sparse: Array  # (N, vocabulary)
    multivector: list[Array]  # (n, H) each


class Model:
    """The three answers of one text in plain torch."""

    def __init__(self, path: Path) -> None:
        self.embedder: SentenceTransformer = load_embedder(path)
        self._weigh = self._linear(path / "sparse_linear.pt", 1)
        self._project = self._linear(path / "colbert_linear.pt", HIDDEN_SIZE)

    @staticmethod
    def _linear(path: Path, num_outputs: int) -> torch.nn.Linear:
        linear = torch.nn.Linear(HIDDEN_SIZE, num_outputs)
        linear.load_state_dict(torch.load(path, weights_only=True))
        return linear

    @torch.inference_mode()
    def answers(self, texts: list[str], **options: Any) -> Reference:
        sparse, multivector = [], []
        for text in texts:
            features = self.embedder.preprocess([text], **options)
            ids = features["input_ids"][0].tolist()
            hidden = self.embedder(features)["token_embeddings"][0]  # (T, H)
            weights = np.zeros(VOCABULARY_SIZE, dtype=np.float32)
            for token_id, weight in zip(ids, torch.relu(self._weigh(hidden))[:, 0].tolist(), strict=True):
                if token_id not in SPECIAL_IDS:
                    weights[token_id] = max(weights[token_id], weight)
            sparse.append(weights)
            multivector.append(normalize(self._project(hidden[1:]), dim=-1).numpy())
        dense = references.vectors(self.embedder.encode, texts, **options)
        return Reference(dense, np.array(sparse), multivector)


Compared = tuple[Served, Model]


@pytest.fixture(
    scope="module", params=[("xlm-roberta", "packed"), ("mpnet", "padded")], ids=lambda each: each[0]
)
def compared(request: pytest.FixtureRequest, serve: Serve, tmp_path_factory: Any) -> Compared:
    model_type, attention = request.param
    path = save_small_m3(tmp_path_factory.mktemp("m3"), model_type)
    served = serve(path)
    assert served.engine.info.outputs == ALL
    assert served.attention == attention, served.engine.info.attention_reason
    assert served.reads_tokens
    return served, Model(path)


def sparse_array(rows: Any) -> Array:
    return spread_out([SparseVector(*row) for row in rows], VOCABULARY_SIZE)


@contextlib.contextmanager
def counted_passes(served: Served) -> Iterator[list[int]]:
    """How many texts each call of the transformer computes while the block runs."""
    calls: list[int] = []
    network: Any = served.model.replicas[0].torch_model.model[0].model
    forward = network.forward  # sentence-transformers calls it by name, past all hooks

    def count(**given: Any) -> Any:
        starts = given.get("cu_seq_lens_q")
        calls.append(len(given["input_ids"]) if starts is None else len(starts) - 1)
        return forward(**given)

    network.forward = count
    yield calls
    del network.forward


def test_all_answers_of_one_request(compared: Compared, texts: list[str]) -> None:
    served, model = compared
    inputs = [*texts, LONG, texts[1], "word5", "unknown"]
    answer = served.encode(inputs, outputs=ALL)
    expected = model.answers(inputs)
    assert_same_vectors(answer.dense, expected.dense)
    assert_same_vectors(sparse_array(answer.sparse), expected.sparse)
    assert_same_vectors(answer.multivector, expected.multivector)


@pytest.mark.parametrize(
    "outputs", [ALL, ("sparse", "multivector"), ("dense",), ("sparse",), ("multivector",)], ids=str
)
def test_any_choice_of_answers_is_one_forward_pass(
    outputs: tuple[OutputName, ...], compared: Compared, texts: list[str]
) -> None:
    served, model = compared
    for inputs in (texts[:1], [texts[0]] * 5):
        with counted_passes(served) as calls:
            answer = served.encode(inputs, outputs=outputs)
        assert calls == [1]
    expected = model.answers(texts[:1])
    if "dense" in outputs:
        assert_same_vectors([answer.dense[0]], expected.dense)  # type: ignore[index]
    if "sparse" in outputs:
        assert_same_vectors(sparse_array(answer.sparse)[:1], expected.sparse)
    if "multivector" in outputs:
        assert_same_vectors(answer.multivector[:1], expected.multivector)  # type: ignore[index]
    given = {name for name in ALL if getattr(answer, name) is not None}
    assert given == set(outputs)


def test_many_texts_are_computed_once_each(compared: Compared, texts: list[str]) -> None:
    served, _ = compared
    with counted_passes(served) as calls:
        served.encode(texts, outputs=ALL)
    assert sum(calls) == len(texts)


def test_prompts_stand_in_all_answers(compared: Compared, texts: list[str]) -> None:
    served, model = compared
    answer = served.encode(texts[:6], outputs=ALL, prompt="word9 word10 ")
    expected = model.answers(texts[:6], prompt="word9 word10 ")
    assert_same_vectors(answer.dense, expected.dense)
    assert_same_vectors(sparse_array(answer.sparse), expected.sparse)
    assert_same_vectors(answer.multivector, expected.multivector)


def test_dense_is_what_is_answered_unless_asked_otherwise(compared: Compared, texts: list[str]) -> None:
    served, model = compared
    answer = served.encode(texts)
    assert answer.sparse is None
    assert answer.multivector is None
    assert_same_vectors(answer.dense, references.vectors(model.embedder.encode, texts))
