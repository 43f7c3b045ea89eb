from __future__ import annotations

import asyncio
import inspect
from dataclasses import replace
from typing import Any

import pytest

from infinity_emb.config import EngineArgs
from infinity_emb.engine import AsyncEmbeddingEngine
from infinity_emb.engine_array import AsyncEngineArray
from infinity_emb.errors import EngineNotReady, ModelNotDeployedError, StartupError, UnknownModel
from infinity_emb.primitives import Capability, ModelInfo

TASKS = ["embed", "encode", "encode_passages", "rerank", "classify", "image_embed", "audio_embed"]


def fake_args(name: str, *aliases: str) -> EngineArgs:
    return EngineArgs(
        model_name_or_path="debug",
        engine="debugengine",
        served_model_name=name,
        served_model_aliases=aliases,
    )


def array_of(*names: str) -> AsyncEngineArray:
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


def test_an_engine_is_found_by_what_was_loaded_and_a_name_counts_before_that() -> None:
    array = AsyncEngineArray.from_args([fake_args("first")])
    assert array["debug"] is array[0]

    array = AsyncEngineArray.from_args([fake_args("first"), fake_args("debug")])
    assert array["debug"] is array[1]


def test_an_unknown_name_is_answered_with_those_that_are_served() -> None:
    array = AsyncEngineArray.from_args([fake_args("first", "one"), fake_args("second")])

    with pytest.raises(UnknownModel, match=r"`third` not found.* \['first', 'one', 'second'\]"):
        array["third"]
    with pytest.raises(IndexError):
        array["third"]


@pytest.mark.parametrize("position", [-1, 2])
def test_a_position_without_an_engine_is_unknown(position: int) -> None:
    with pytest.raises(UnknownModel, match=f"no model at position {position}; there are 2"):
        array_of("first", "second")[position]


@pytest.mark.parametrize(
    "engine_args",
    [
        [fake_args("same"), fake_args("same")],
        [fake_args("first", "same"), fake_args("same")],
        [fake_args("first", "same"), fake_args("second", "same")],
    ],
)
def test_two_models_of_one_name_are_refused_before_they_are_loaded(engine_args: list[EngineArgs]) -> None:
    with pytest.raises(StartupError, match="'same'"):
        AsyncEngineArray.from_args(engine_args)
    with pytest.raises(StartupError, match="'same'"):
        AsyncEngineArray([AsyncEmbeddingEngine.from_args(args) for args in engine_args])


def test_an_array_of_no_engines_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        AsyncEngineArray([])


@pytest.mark.parametrize("separator", [":", "-"])
@pytest.mark.parametrize("input_type", ["query", "document", "passage"])
@pytest.mark.parametrize("name", ["first", "one"])
def test_a_name_can_say_what_the_texts_are(name: str, input_type: str, separator: str) -> None:
    array = AsyncEngineArray.from_args([fake_args("first", "one"), fake_args("second")])

    assert array.resolve(name) == (array["first"], None)
    assert array.resolve(f"{name}{separator}{input_type}") == (array["first"], input_type)


def test_a_model_that_is_served_by_such_a_name_is_meant_itself() -> None:
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
def test_what_is_no_name_with_an_input_type_is_unknown(name: str) -> None:
    with pytest.raises(UnknownModel, match="not found"):
        array_of("first").resolve(name)


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


def test_a_request_without_a_model_goes_to_the_only_engine_that_can_do_it() -> None:
    array = AsyncEngineArray([able_engine("texts", "embed"), able_engine("pairs", "rerank")])

    assert array.first_with("embed") is array["texts"]
    assert array.first_with("rerank") is array["pairs"]


def test_an_engine_that_is_made_for_it_is_taken_before_those_that_can_do_it_too() -> None:
    """Every embedder can rerank by its vectors; that does not make the only reranker ambiguous."""
    array = AsyncEngineArray(
        [
            able_engine("texts", "embed", "rerank"),
            able_engine("pairs", "rerank"),
            able_engine("more texts", "embed", "rerank", "image_embed"),
        ]
    )

    assert array.first_with("rerank") is array["pairs"]
    assert array.first_with("image_embed") is array["more texts"]
    with pytest.raises(UnknownModel, match=r"2 models can 'embed'.*\['texts', 'more texts'\]"):
        array.first_with("embed")


def test_a_request_without_a_model_is_refused_where_none_or_several_can_do_it() -> None:
    array = AsyncEngineArray([able_engine("first", "embed"), able_engine("second", "embed")])

    with pytest.raises(UnknownModel, match=r"2 models can 'embed'.*\['first', 'second'\]"):
        array.first_with("embed")
    with pytest.raises(UnknownModel, match=r"0 models can 'classify'.*\['first', 'second'\]"):
        array.first_with("classify")


def test_the_only_engine_gets_every_request_without_a_model_and_says_itself_what_it_cannot() -> None:
    array = array_of("only")

    assert array.first_with("classify") is array[0]
    with pytest.raises(ModelNotDeployedError):
        asyncio.run(array.first_with("classify").classify(sentences=["a"]))


@pytest.mark.parametrize("task", TASKS)
def test_a_task_takes_the_arguments_of_the_engine_and_the_model(task: str) -> None:
    names = list(inspect.signature(getattr(AsyncEmbeddingEngine, task)).parameters)[1:]
    array = AsyncEngineArray(
        [Recorder.from_args(fake_args("first")), Recorder.from_args(fake_args("second"))]
    )

    arguments = {name: f"value of {name}" for name in names}
    assert asyncio.run(getattr(array, task)(model="second", **arguments)) == arguments


def test_tasks_go_to_the_engine_that_is_named() -> None:
    async def main() -> None:
        async with array_of("first", "second") as array:
            vectors, num_tokens = await array.embed(model="second", sentences=["aa"])
            assert (float(vectors[0][0]), num_tokens) == (2.0, 2)
            await array.embed(model=1, sentences=["b"], matryoshka_dim=3)
            assert [engine.stats.num_items for engine in array] == [0, 2]
            with pytest.raises(UnknownModel):
                await array.embed(model="third", sentences=["a"])
            with pytest.raises(ModelNotDeployedError):
                await array.rerank(model="first", query="q", docs=["d"])
            with pytest.raises(TypeError, match="no_such_option"):
                await array.embed(model="first", sentences=["a"], no_such_option=1)

    asyncio.run(main())


def test_an_array_runs_when_every_engine_does_and_can_be_started_again() -> None:
    array = array_of("first", "second")

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
