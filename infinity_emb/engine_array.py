"""Several engines by name, and by name and side of a search. Knows nothing of what an engine does.

Tasks are reached as `array["name"].embed(...)`; the methods with a `model` argument, which users of
`AsyncEngineArray` know, are made from the engine's own by `_by_model`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from infinity_emb.config import EngineArgs, check_distinct_names
from infinity_emb.engine import AsyncEmbeddingEngine
from infinity_emb.errors import UnknownModel
from infinity_emb.primitives import Capability

# What may stand behind a model's name, for clients that can send nothing but a name: `model:query`, and
# `model-query` as NVIDIA's servers have it.
INPUT_TYPE_SEPARATORS = (":", "-")
INPUT_TYPE_SUFFIXES = ("query", "document", "passage")
_MAX_CHARS_SHOWN = 200


class Resolved(NamedTuple):
    """The engine that a name stands for, and the input type that the name asks for."""

    engine: AsyncEmbeddingEngine
    input_type: str | None


def _by_model(task: str) -> Callable[..., Awaitable[Any]]:
    """A method that takes the engine's arguments by keyword, and `model`."""

    async def method(self: AsyncEngineArray, *, model: str | int, **kwargs: Any) -> Any:
        return await getattr(self[model], task)(**kwargs)

    method.__name__ = task
    method.__doc__ = f"`{task}` of the engine that `model` names. Raises UnknownModel."
    return method


class AsyncEngineArray:
    """The engines of one process; indexed by served name, alias or position."""

    def __init__(self, engines: Sequence[AsyncEmbeddingEngine]) -> None:
        if not engines:
            raise ValueError("an engine array needs at least one engine")
        self.engines_dict: dict[str, AsyncEmbeddingEngine] = {}
        self._by_name: dict[str, AsyncEmbeddingEngine] = {}
        # Callers in the same process know a model by what they loaded.
        self._by_path: dict[str, AsyncEmbeddingEngine] = {}
        self._on_death: Callable[[str], None] = lambda _: None
        self._replace_all(engines)

    @classmethod
    def from_args(cls, engine_args_array: Sequence[EngineArgs]) -> AsyncEngineArray:
        """Load one model after the other; blocks. Raises StartupError."""
        check_distinct_names(list(engine_args_array))
        return cls([AsyncEmbeddingEngine.from_args(args) for args in engine_args_array])

    def add(self, engine: AsyncEmbeddingEngine) -> None:
        """Serve it too. Raises StartupError where one of its names is taken."""
        self._replace_all([*self, engine])
        self.call_on_death(self._on_death)

    def remove(self, engine: AsyncEmbeddingEngine) -> None:
        """Serve it no longer; it is left as it is."""
        self._replace_all([each for each in self if each is not engine])
        engine.call_on_death(lambda: None)

    def call_on_death(self, callback: Callable[[str], None]) -> None:
        """Have it called with a model's name when its device is lost for good, on any thread."""
        self._on_death = callback
        for engine in self:
            engine.call_on_death(partial(callback, engine.engine_args.served_model_name))

    def _replace_all(self, engines: Sequence[AsyncEmbeddingEngine]) -> None:
        check_distinct_names([engine.engine_args for engine in engines])
        self.engines_dict = {engine.engine_args.served_model_name: engine for engine in engines}
        self._by_name = {
            name: engine
            for engine in engines
            for name in (engine.engine_args.served_model_name, *engine.engine_args.served_model_aliases)
        }
        self._by_path = {engine.engine_args.model_name_or_path: engine for engine in engines}

    def __iter__(self) -> Iterator[AsyncEmbeddingEngine]:
        return iter(self.engines_dict.values())

    def __len__(self) -> int:
        return len(self.engines_dict)

    def __getitem__(self, index_or_name: str | int) -> AsyncEmbeddingEngine:
        """Raises UnknownModel with the names that are served."""
        if isinstance(index_or_name, int):
            engines = list(self)
            if not 0 <= index_or_name < len(engines):
                raise UnknownModel(f"no model at position {index_or_name}; there are {len(engines)}")
            return engines[index_or_name]
        engine = self._by_name.get(index_or_name) or self._by_path.get(index_or_name)
        if engine is None:
            raise UnknownModel(
                f"Invalid model: Engine for model name `{index_or_name[:_MAX_CHARS_SHOWN]}` not found."
                f" Available model names are {list(self._by_name)}"
            )
        return engine

    def resolve(self, name: str) -> Resolved:
        """The engine for a request that names a model, by served name, alias, or either with an input type.

        A served name or an alias always wins. Otherwise `:query`, `:document` or `:passage`, or the same
        behind a `-`, is taken off and says what the texts are. Raises UnknownModel as `array[name]` does.
        """
        if name not in self._by_name:
            for separator in INPUT_TYPE_SEPARATORS:
                base, _, suffix = name.rpartition(separator)
                if suffix in INPUT_TYPE_SUFFIXES and base in self._by_name:
                    return Resolved(self._by_name[base], suffix)
        return Resolved(self[name], None)

    def first_with(self, capability: Capability) -> AsyncEmbeddingEngine:
        """The engine for a request that names no model: the only one made for it, else the only one able.

        An only engine gets every request, and says itself what it cannot. Raises UnknownModel when none or
        several can.
        """
        able = [engine for engine in self if capability in engine.capabilities]
        made = [engine for engine in able if engine.info.capabilities[0] == capability]
        for candidates in (made, able, list(self)):
            if len(candidates) == 1:
                return candidates[0]
        names = [engine.engine_args.served_model_name for engine in able]
        raise UnknownModel(
            f"the request names no model and {len(able)} models can {capability!r}; give `model` as one of"
            f" {names or list(self.engines_dict)}"
        )

    async def astart(self) -> None:
        """Start every engine."""
        for engine in self:
            await engine.astart()

    async def astop(self) -> None:
        """Stop every engine, each finishing what it accepted."""
        for engine in self:
            await engine.astop()

    async def __aenter__(self) -> AsyncEngineArray:
        await self.astart()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.astop()

    def is_running(self) -> bool:
        """Whether every engine can answer."""
        return all(engine.is_running for engine in self)

    embed = _by_model("embed")
    encode = _by_model("encode")
    encode_passages = _by_model("encode_passages")
    rerank = _by_model("rerank")
    classify = _by_model("classify")
    image_embed = _by_model("image_embed")
    audio_embed = _by_model("audio_embed")
