"""One model served by every engine, and what each of them must answer.

The models of the real engines are small random ones, and sentence-transformers says what is right, asked for
one input at a time; the fake engine's answers are how long its inputs are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infinity_emb import AsyncEmbeddingEngine
from infinity_emb.backends.base import LoadedModel
from infinity_emb.backends.fake import encode
from infinity_emb.items import Encoded, Pair, number_inputs
from tests.parity.references import load_embedder, load_reranker, one_by_one
from tests.parity.serving import Served, engine_args
from tests.support.engine_home import engine_home
from tests.support.small_models import random_texts, save_small_classifier, save_small_model

REAL_ENGINES = ("torch", "optimum", "ctranslate2", "openvino")
FAKE_ENGINE = "debugengine"
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Contender:
    """A model on one engine.

    expected: inputs, which are texts or pairs → their rows, (N, D) or (N, 1) raw scores.
    broken: an item that the backend cannot compute.
    """

    served: Served
    expected: Callable[[Sequence[Any]], Array]
    broken: Encoded

    @property
    def model(self) -> LoadedModel:
        model = self.served.engine.slot.model
        assert model is not None
        return model


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: Any) -> Iterator[Path]:
    """Where graphs are kept: each model is exported once for all modules here."""
    with engine_home(tmp_path_factory) as folder:
        yield folder


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Short and long ones, one of them over the limit."""
    return [*random_texts(24, max_words=200), "word7", " ".join(["word3 word4"] * 200)]


@pytest.fixture(scope="session")
def embedder_folder(tmp_path_factory: Any) -> Path:
    return save_small_model(tmp_path_factory.mktemp("embedder"), "bert")


@pytest.fixture(scope="session")
def reranker_folder(tmp_path_factory: Any) -> Path:
    return save_small_classifier(tmp_path_factory.mktemp("reranker"), "roberta")


@pytest.fixture(scope="session")
def start() -> Iterator[Callable[..., Served]]:
    """Serves a folder; all engines end with the session."""
    loop = asyncio.new_event_loop()
    started: list[AsyncEmbeddingEngine] = []

    def start_engine(path: Path | str, **options: Any) -> Served:
        engine = AsyncEmbeddingEngine.from_args(engine_args(path, **options))
        loop.run_until_complete(engine.astart())
        started.append(engine)
        return Served(engine, loop)

    yield start_engine
    for engine in started:
        loop.run_until_complete(engine.astop())
    loop.close()


@pytest.fixture(scope="session", params=[*REAL_ENGINES, FAKE_ENGINE])
def embedder(request: Any, embedder_folder: Path, start: Callable[..., Served]) -> Contender:
    if request.param == FAKE_ENGINE:
        served = start("debug?kind=embedder&fail_on=poison", engine=FAKE_ENGINE)
        return Contender(served, _lengths, _broken_for_the_fake_engine())
    reference = load_embedder(embedder_folder)
    served = start(embedder_folder, engine=request.param)
    return Contender(served, lambda texts: np.array(one_by_one(reference.encode, texts)), _BROKEN)


@pytest.fixture(scope="session", params=[*REAL_ENGINES, FAKE_ENGINE])
def reranker(request: Any, reranker_folder: Path, start: Callable[..., Served]) -> Contender:
    if request.param == FAKE_ENGINE:
        served = start("debug?kind=reranker&fail_on=poison", engine=FAKE_ENGINE)
        return Contender(served, _document_lengths, _broken_for_the_fake_engine())
    reference = load_reranker(reranker_folder)
    served = start(reranker_folder, engine=request.param)

    def expected(pairs: Sequence[Any]) -> Array:
        scores = one_by_one(reference.predict, list(map(tuple, pairs)), activation_fn=torch.nn.Identity())
        return np.array(scores).reshape(-1, 1)

    return Contender(served, expected, _BROKEN)


# A token that no vocabulary has.
_BROKEN = Encoded(np.array([2, 10**6, 3], dtype=np.int32))


def _broken_for_the_fake_engine() -> Encoded:
    from infinity_emb.items import InputOptions

    return encode(number_inputs(["poison"]), InputOptions())[0]


def _lengths(texts: Sequence[str]) -> Array:
    return np.repeat(np.array([[len(text)] for text in texts], dtype=np.float32), 13, axis=1)


def _document_lengths(pairs: Sequence[Pair]) -> Array:
    return np.array([[len(pair.document)] for pair in pairs], dtype=np.float32)
