"""Free the memory of unloaded models and of failed loads."""

from __future__ import annotations

import asyncio
import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.engine.slot import load_on_thread
from infinity_emb.errors import StartupError
from tests.support.event_loop import run
from tests.support.small_models.embedders import save_small_model


class Large:
    """Something a failed load had in memory."""


def test_a_failed_load_leaves_nothing_in_memory() -> None:
    kept: list[weakref.ref[Large]] = []

    def load() -> None:
        large = Large()
        kept.append(weakref.ref(large))
        raise ZeroDivisionError("in the model's own code")

    failure = run(load_on_thread(load, "some model"))
    assert isinstance(failure, StartupError)
    assert "ZeroDivisionError: in the model's own code" in str(failure)
    assert kept[0]() is None


def test_a_real_model_is_freed_and_returns_the_same_vectors_after_a_reload(tmp_path: Path) -> None:
    args = EngineArgs(
        model_name_or_path=str(save_small_model(tmp_path, "bert")),
        device="cpu",
        model_warmup=False,
        token_ids="model",
        vector_memory_cache_mb=1,
    )

    def tensors_of(engine: AsyncEmbeddingEngine) -> list[weakref.ref[Any]]:
        assert engine.slot.model is not None
        backend: Any = engine.slot.model.replicas[0]
        return [weakref.ref(each) for each in backend.torch_model.model.parameters()]

    async def main() -> None:
        async with AsyncEmbeddingEngine.from_args(args) as engine:
            texts = ["one", "two words", "three more words"]
            before, _ = await engine.embed(texts)
            await engine.tokenizer.tokenize(texts)
            gc.collect()
            for away in (unload_idle, reload):
                weights = tensors_of(engine)
                assert weights
                assert all(each() is not None for each in weights)
                await away(engine)
                while any(each() is not None for each in weights):  # until the time limit of `run`
                    await asyncio.sleep(0.01)
                after, _ = await engine.embed(texts)
                assert np.array_equal(np.stack(before), np.stack(after))
            weights = tensors_of(engine)
            await engine.slot.unload()
            assert [each for each in weights if each() is not None] == []
            assert not engine.slot.is_loaded

    run(main())


async def unload_idle(engine: AsyncEmbeddingEngine) -> None:
    engine.slot.unload_if_idle()
    while engine.slot.is_loaded:
        await asyncio.sleep(0.01)


async def reload(engine: AsyncEmbeddingEngine) -> None:
    await engine.slot.reload()
