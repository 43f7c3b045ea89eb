from __future__ import annotations

import asyncio
import inspect
from dataclasses import replace
from typing import Any

import pytest

from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.engine.array import AsyncEngineArray
from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.errors import (
    EngineNotReady,
    ModelNotDeployedError,
    ModelNotNamed,
    StartupError,
    UnknownModel,
)
from infinity_emb.types import Capability, ModelInfo

TASKS = ["embed", "encode", "encode_passages", "rerank", "classify", "image_embed", "audio_embed"]


def fake_args(name: str, *aliases: str) -> EngineArgs:
    return EngineArgs(
        model_name_or_path="debug",
        engine="debugengine",
        served_model_name=name,
        served_model_aliases=aliases,
    )


def make_array(*names: str) -> AsyncEngineArray:
    return AsyncEngineArray.from_args([fake_args(name) for name in names])


class Recorder(AsyncEmbeddingEngine):
    """An engine that answers every task with the arguments it got."""

    def __getattribute__(self, name: str) -> Any:
        if name in TASKS:
            return self._record
        return super().__getattribute__(name)

    async def _record(self, **arguments: Any) -> dict[str, Any]:
        return arguments


def test_an_engine_is_found_by_name_alias_and_position() -> None:
    array = AsyncEngineArray.from_args([fake_args("first", "one", "eins"), fake_args("second")])

    assert array["first"] is array["one"] is array["eins"] is array[0]
    assert array["second"] is array[1]
    assert list(array) == [array[0], array[1]]
    assert len(array) == 2
    assert array.engines_dict == {"first": array[0], "second": array[1]}


def test_an_engine_is_found_by_its_path_unless_another_has_that_name() -> None:
    array = AsyncEngineArray.from_args([fake_args("first")])
    assert array["debug"] is array[0]

    array = AsyncEngineArray.from_args([fake_args("first"), fake_args("debug")])
    assert array["debug"] is array[1]


def test_the_error_of_an_unknown_name_lists_the_served_names() -> None:
    array = AsyncEngineArray.from_args([fake_args("first", "one"), fake_args("second")])

    with pytest.raises(UnknownModel, match=r"`third` not found.* 'first', 'one', 'second'"):
        array["third"]
    with pytest.raises(IndexError):
        array["third"]


@pytest.mark.parametrize("position", [-1, 2])
def test_a_position_out_of_range_is_unknown(position: int) -> None:
    with pytest.raises(UnknownModel, match=f"no model at position {position}; there are 2"):
        make_array("first", "second")[position]


@pytest.mark.parametrize(
    "engine_args",
    [
        [fake_args("same"), fake_args("same")],
        [fake_args("first", "same"), fake_args("same")],
        [fake_args("first", "same"), fake_args("second", "same")],
    ],
)
def test_duplicate_names_are_refused_before_loading(engine_args: list[EngineArgs]) -> None:
    with pytest.raises(StartupError, match="'same'"):
        AsyncEngineArray.from_args(engine_args)
    with pytest.raises(StartupError, match="'same'"):
        AsyncEngineArray([AsyncEmbeddingEngine.from_args(args) for args in engine_args])


def test_an_empty_array_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        AsyncEngineArray([])


@pytest.mark.parametrize("separator", [":", "-"])
@pytest.mark.parametrize("input_type", ["query", "document", "passage"])
@pytest.mark.parametrize("name", ["first", "one"])
def test_a_name_can_end_in_an_input_type(name: str, input_type: str, separator: str) -> None:
    array = AsyncEngineArray.from_args([fake_args("first", "one"), fake_args("second")])

    assert array.resolve(name) == (array["first"], None)
    assert array.resolve(f"{name}{separator}{input_type}") == (array["first"], input_type)


def test_a_served_name_that_ends_in_an_input_type_takes_precedence() -> None:
    array = AsyncEngineArray.from_args(
        [fake_args("e5"), fake_args("e5-query", "e5:document"), fake_args("e5:query-passage")]
    )

    assert array.resolve("e5-query") == array.resolve("e5:document") == (array["e5-query"], None)
    assert array.resolve("e5-query:query") == (array["e5-query"], "query")
    assert array.resolve("e5:query-passage") == (array["e5:query-passage"], None)
    assert array.resolve("e5-passage") == (array["e5"], "passage")


@pytest.mark.parametrize(
    "name", ["", "query", ":query", "third:query", "first:poem", "first query", "first:", "first:query:query"]
)
def test_other_suffixes_are_unknown(name: str) -> None:
    with pytest.raises(UnknownModel, match="not found"):
        make_array("first", "second").resolve(name)


class Able(AsyncEmbeddingEngine):
    """An engine that says it can do other things."""

    able: tuple[Capability, ...]

    @property
    def info(self) -> ModelInfo:
        return replace(super().info, capabilities=self.able)


def able_engine(name: str, *able: Capability) -> AsyncEmbeddingEngine:
    engine = Able.from_args(fake_args(name))
    engine.able = able  # type: ignore[attr-defined]
    return engine


def test_a_request_without_a_model_goes_to_the_only_engine_that_supports_it() -> None:
    array = AsyncEngineArray([able_engine("texts", "embed"), able_engine("pairs", "rerank")])

    assert array.default_for("embed") is array["texts"]
    assert array.default_for("rerank") is array["pairs"]


def test_an_engine_with_the_primary_capability_is_preferred() -> None:
    """Every embedder can rerank by its vectors; that does not make the only reranker ambiguous."""
    array = AsyncEngineArray(
        [
            able_engine("texts", "embed", "rerank"),
            able_engine("pairs", "rerank"),
            able_engine("more texts", "embed", "rerank", "image_embed"),
        ]
    )

    assert array.default_for("rerank") is array["pairs"]
    assert array.default_for("image_embed") is array["more texts"]
    with pytest.raises(ModelNotNamed, match=r"2 models support 'embed'.*'texts', 'more texts'"):
        array.default_for("embed")


def test_a_request_without_a_model_is_refused_when_none_or_several_support_it() -> None:
    array = AsyncEngineArray([able_engine("first", "embed"), able_engine("second", "embed")])

    with pytest.raises(ModelNotNamed, match=r"2 models support 'embed'.*'first', 'second'"):
        array.default_for("embed")
    with pytest.raises(ModelNotNamed, match=r"0 models support 'classify'.*'first', 'second'"):
        array.default_for("classify")


def test_a_single_engine_gets_every_request_without_a_model() -> None:
    array = make_array("only")

    assert array.default_for("classify") is array[0]
    with pytest.raises(ModelNotDeployedError):
        asyncio.run(array.default_for("classify").classify(sentences=["a"]))


@pytest.mark.parametrize("task", TASKS)
def test_a_task_takes_the_arguments_of_the_engine_and_a_model(task: str) -> None:
    names = list(inspect.signature(getattr(AsyncEmbeddingEngine, task)).parameters)[1:]
    array = AsyncEngineArray(
        [Recorder.from_args(fake_args("first")), Recorder.from_args(fake_args("second"))]
    )

    arguments = {name: f"value of {name}" for name in names}
    assert asyncio.run(getattr(array, task)(model="second", **arguments)) == arguments


def test_tasks_go_to_the_named_engine() -> None:
    async def main() -> None:
        async with make_array("first", "second") as array:
            vectors, num_tokens = await array.embed(model="second", sentences=["aa"])
            assert (float(vectors[0][0]), num_tokens) == (2.0, 2)
            await array.embed(model=1, sentences=["b"], matryoshka_dim=3)
            assert [engine.status().worker.num_items for engine in array] == [0, 2]
            with pytest.raises(UnknownModel):
                await array.embed(model="third", sentences=["a"])
            with pytest.raises(ModelNotDeployedError):
                await array.rerank(model="first", query="q", docs=["d"])
            with pytest.raises(TypeError, match="no_such_option"):
                await array.embed(model="first", sentences=["a"], no_such_option=1)  # type: ignore[call-arg]

    asyncio.run(main())


def test_an_array_is_running_when_all_engines_are_and_can_be_restarted() -> None:
    array = make_array("first", "second")

    async def main() -> None:
        assert not array.is_running()
        async with array:
            assert array.is_running()
            await array[0].astop()
            assert not array.is_running()
        assert not any(engine.is_running for engine in array)
        with pytest.raises(EngineNotReady):
            await array.embed(model=0, sentences=["a"])

    asyncio.run(main())
    asyncio.run(main())
