"""Engines that a module's tests share; each model is loaded once per module."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from infinity_emb import AsyncEmbeddingEngine
from tests.parity.serving import Served, engine_args
from tests.support.small_models import random_texts, save_small_model

Serve = Callable[..., Served]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    """For the references' operators: to wake a second thread takes longer than they do.

    Anew in each module: an engine that measures its batch size, as the bundled model's does, sets it too.
    """
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return random_texts(24, max_words=200)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: Any) -> Path:
    return save_small_model(tmp_path_factory.mktemp("bert"), "bert", pooling_mode="max")


@pytest.fixture(scope="module")
def serve() -> Iterator[Serve]:
    """Loads and starts the engine of a folder; all end with the module."""
    loop = asyncio.new_event_loop()
    started: list[AsyncEmbeddingEngine] = []

    def start(path: Path, **options: Any) -> Served:
        engine = AsyncEmbeddingEngine.from_args(engine_args(path, **options))
        loop.run_until_complete(engine.astart())
        started.append(engine)
        return Served(engine, loop)

    yield start
    for engine in started:
        loop.run_until_complete(engine.astop())
    loop.close()
