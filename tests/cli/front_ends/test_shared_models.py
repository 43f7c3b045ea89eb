"""Models that are unloaded while front ends serve: nothing refers to them any more, in any process."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from infinity_emb.cli.front_ends.client import EngineClient
from infinity_emb.cli.front_ends.engine_service import EngineService
from infinity_emb.cli.front_ends.remote_engine import RemoteEngine
from infinity_emb.cli.front_ends.shared_models import LocalModels
from infinity_emb.cli.front_ends.supervisor import _drop_weights
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.engine.array import AsyncEngineArray
from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.types import Device
from tests.support.event_loop import PATIENCE_S, run
from tests.support.fake_engines import fake_engine


def test_the_engine_process_frees_a_model_that_is_unloaded() -> None:
    async def main() -> None:
        engine = fake_engine()
        async with engine:
            array = AsyncEngineArray([engine, fake_engine(served_model_name="other")])
            service = EngineService(array, on_ready=lambda _: None, on_lost=lambda _: None)
            model = engine.slot.model
            assert model is not None
            held = [weakref.ref(part) for part in (*model.replicas, model.vocabulary)]
            del model
            array.remove(engine)
            await service.share_models()
            await engine.slot.unload()
            gc.collect()
            assert [each() for each in held] == [None, None]

    run(main())


def test_a_front_end_frees_the_preprocessing_of_a_model_that_is_unloaded_once_its_requests_end() -> None:
    async def main() -> None:
        engine = fake_engine()
        remote = RemoteEngine(engine, EngineClient(), 0, num_front_ends=1)
        other = RemoteEngine(fake_engine(served_model_name="other"), EngineClient(), 1, num_front_ends=1)
        array = AsyncEngineArray([remote, other])
        models = LocalModels(array)
        await array.astart()
        assert remote.slot.model is not None
        held = weakref.ref(remote.slot.model.vocabulary)
        engine.slot.model = None
        with remote.slot.use() as open_model:
            models.update([1], are_all=True)
            await asyncio.sleep(0.05)
            assert open_model.model.vocabulary is held()
        del open_model
        await asyncio.wait_for(asyncio.gather(*models._frees), PATIENCE_S)
        assert held() is None
        assert list(array) == [other]
        await other.astop()

    run(main())


@pytest.mark.model
def test_what_front_ends_keep_of_the_bundled_model_does_not_refer_to_its_weights() -> None:
    from infinity_emb.backends.torch.backend import TorchBackend

    engine = AsyncEmbeddingEngine.from_args(EngineArgs(model_warmup=False, device=Device.cpu))
    assert engine.slot.model is not None
    backend = engine.slot.model.replicas[0]
    assert isinstance(backend, TorchBackend)
    weights = weakref.ref(backend.torch_model.model)
    del backend
    _drop_weights(AsyncEngineArray([engine]), has_unloads=True)
    assert weights() is None
    assert engine.slot.model.vocabulary is not None
