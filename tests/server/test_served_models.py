from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from infinity_emb.engine.array import AsyncEngineArray
from infinity_emb.errors import EngineNotReady, LoadFailed, NameInUse, UnknownModel
from infinity_emb.server.served_models import ServedModels
from tests.support.tiny_server import debug_args

pytestmark = pytest.mark.anyio


@pytest.fixture
async def models(anyio_backend: str) -> AsyncIterator[ServedModels]:
    models = ServedModels(
        lambda: AsyncEngineArray.from_args([debug_args("first"), debug_args("second?kind=reranker")]),
        shutdown_timeout_s=5,
    )
    async with models.running():
        yield models


async def test_the_engines_exist_only_after_the_start() -> None:
    models = ServedModels(lambda: AsyncEngineArray.from_args([debug_args()]), shutdown_timeout_s=5)
    assert not models.is_loaded
    assert models.guess_engine("debug") is None
    with pytest.raises(EngineNotReady):
        models.resolve("debug", "embed")
    async with models.running() as array:
        assert models.array is array
        assert models.started_at > 0
        assert array["debug"].is_running
    assert not array["debug"].is_running


async def test_a_request_without_a_model_gets_the_one_made_for_the_task(models: ServedModels) -> None:
    assert models.resolve(None, "embed").engine is models.array["first"]
    assert models.resolve(None, "rerank").engine is models.array["second"]
    assert models.resolve("first:query", "embed").input_type == "query"
    with pytest.raises(UnknownModel):
        models.resolve("third", "embed")


@pytest.mark.parametrize("name", [None, 7, "third", "x" * 1000, ["first"], {}])
async def test_no_engine_is_guessed_from_what_names_none(models: ServedModels, name: object) -> None:
    assert models.guess_engine(name) is None


async def test_an_engine_is_guessed_from_each_of_its_names(models: ServedModels) -> None:
    for name in ("first", "first:query", "FIRST"):
        assert models.guess_engine(name) is models.array["first"]
    await models.unload(models.array["second"])
    assert models.guess_engine(None) is models.guess_engine(7) is models.array["first"]


async def test_a_model_is_added_and_removed(models: ServedModels) -> None:
    engine = await models.load(debug_args("third"))
    assert models.array["third"] is engine
    await models.unload(engine)
    assert not engine.is_running
    with pytest.raises(UnknownModel):
        models.array["third"]


async def test_a_name_in_use_is_rejected(models: ServedModels) -> None:
    with pytest.raises(NameInUse, match="'first'"):
        await models.load(debug_args("first"))


async def test_a_model_that_cannot_be_loaded_leaves_nothing_behind(models: ServedModels) -> None:
    with pytest.raises(LoadFailed):
        await models.load(debug_args("third?kind=unknown"))
    assert [engine.engine_args.served_model_name for engine in models.array] == ["first", "second"]
    assert not models.changing
    await models.load(debug_args("third"))


async def test_one_model_is_changed_at_a_time(models: ServedModels) -> None:
    models.changing.add("first")
    with pytest.raises(NameInUse, match="try again later"):
        await models.reload(models.array["first"])
    models.changing.clear()
    await models.reload(models.array["first"])
    assert models.array["first"].is_running
