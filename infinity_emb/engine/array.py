"""Look up engines by name, alias, or name with an input type.

`array["name"].embed(...)` runs a task, and so does `array.embed(model="name", ...)`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from infinity_emb.config.engine_args import EngineArgs, check_distinct_names
from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.engine.model_tasks import ModelTasks
from infinity_emb.errors import ModelNotNamed, UnknownModel, quote_all
from infinity_emb.types import MAX_MODEL_NAME_CHARS, Capability

logger = logging.getLogger("infinity_emb")

# Suffixes of a model's name, for clients that cannot send an input type: `model:query`, or `model-query` as
# on NVIDIA's servers.
INPUT_TYPE_SEPARATORS = (":", "-")
INPUT_TYPE_SUFFIXES = ("query", "document", "passage")
# Ollama's clients append it to a name without a tag.
DEFAULT_TAG = ":latest"
MAX_CHARS_SHOWN = 200


class Resolved(NamedTuple):
    """The engine that a name refers to, and the input type in the suffix of the name, if any."""

    engine: AsyncEmbeddingEngine
    input_type: str | None


class AsyncEngineArray(ModelTasks):
    """The engines of one process, indexed by served name, alias or position."""

    def __init__(self, engines: Sequence[AsyncEmbeddingEngine]) -> None:
        if not engines:
            raise ValueError("an engine array needs at least one engine")
        # A single engine serves requests for any name, as in infinity_emb 0.0.77.
        self.accepts_any_name = True
        self._has_warned = False
        self.engines_dict: dict[str, AsyncEmbeddingEngine] = {}
        self._by_name: dict[str, AsyncEmbeddingEngine] = {}
        # Callers in the same process may also use the path or hub id that they loaded.
        self._by_path: dict[str, AsyncEmbeddingEngine] = {}
        self._on_death: Callable[[str], None] = lambda _: None
        self._replace_all(engines)

    @classmethod
    def from_args(cls, engine_args_array: Sequence[EngineArgs | str] | EngineArgs) -> AsyncEngineArray:
        """Load the models one after the other; blocks. Raises StartupError.

        engine_args_array: options, or the hub id or directory of a model with default options; one or a list.
        """
        if isinstance(engine_args_array, (EngineArgs, str)):
            engine_args_array = [engine_args_array]
        all_args = [args if isinstance(args, EngineArgs) else EngineArgs(args) for args in engine_args_array]
        check_distinct_names(all_args)
        return cls([AsyncEmbeddingEngine.from_args(args) for args in all_args])

    def add(self, engine: AsyncEmbeddingEngine) -> None:
        """Add an engine. Raises StartupError when one of its names is taken."""
        self._replace_all([*self, engine])
        self.call_on_death(self._on_death)

    def remove(self, engine: AsyncEmbeddingEngine) -> None:
        """Remove an engine, without stopping it."""
        self._replace_all([other for other in self if other is not engine])
        engine.host.on_death = lambda: None

    def call_on_death(self, callback: Callable[[str], None]) -> None:
        """Call `callback`, on any thread, with the name of a model whose workers have failed for good."""
        self._on_death = callback
        for engine in self:
            engine.host.on_death = partial(callback, engine.engine_args.served_model_name)

    def _replace_all(self, engines: Sequence[AsyncEmbeddingEngine]) -> None:
        check_distinct_names([engine.engine_args for engine in engines])
        self.engines_dict = {engine.engine_args.served_model_name: engine for engine in engines}
        self._by_name = {name: engine for engine in engines for name in engine.engine_args.list_names()}
        self._by_path = {engine.engine_args.model_name_or_path: engine for engine in engines}

    def __iter__(self) -> Iterator[AsyncEmbeddingEngine]:
        return iter(self.engines_dict.values())

    def __len__(self) -> int:
        return len(self.engines_dict)

    def __getitem__(self, index_or_name: str | int) -> AsyncEmbeddingEngine:
        """Return an engine; a single one answers to any name. Raises UnknownModel with the served names."""
        if isinstance(index_or_name, int):
            engines = list(self)
            if not 0 <= index_or_name < len(engines):
                raise UnknownModel(f"no model at position {index_or_name}; there are {len(engines)}")
            return engines[index_or_name]
        return self.find(index_or_name) or self._get_only_engine(index_or_name)

    def find(self, name: str) -> AsyncEmbeddingEngine | None:
        """Return the engine of a name, alias or path, or None.

        Names are compared as in Ollama: without the tag `:latest`, and ignoring case if that leaves one
        engine.
        """
        for candidate in (name, name.removesuffix(DEFAULT_TAG), name + DEFAULT_TAG):
            engine = self._by_name.get(candidate) or self._by_path.get(candidate)
            if engine is not None:
                return engine
        wanted = name.casefold().removesuffix(DEFAULT_TAG)
        similar = {
            id(engine): engine
            for served, engine in self._by_name.items()
            if served.casefold().removesuffix(DEFAULT_TAG) == wanted
        }
        return next(iter(similar.values())) if len(similar) == 1 else None

    def unknown_model(self, name: str) -> UnknownModel:
        """Return the error for a name that is not served; it lists the served names."""
        shown = name[:MAX_CHARS_SHOWN]
        return UnknownModel(
            f"Invalid model: Engine for model name `{shown}` not found."
            f" Available model names are {quote_all(self._by_name) or 'none'}",
            name=shown,
        )

    def _get_only_engine(self, name: str) -> AsyncEmbeddingEngine:
        """Return the only engine for a name that is not served. Raises UnknownModel."""
        engines = list(self)
        if len(engines) != 1 or not self.accepts_any_name:
            raise self.unknown_model(name)
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "a request names the model %r, which is not served; %r, the only model, is used for every"
                " unknown name (--strict-model-names refuses them)",
                name[:MAX_CHARS_SHOWN],
                engines[0].engine_args.served_model_name,
            )
        return engines[0]

    def resolve(self, name: str) -> Resolved:
        """Return the engine of a served name or alias, or of either followed by an input type.

        A name that is served as it stands takes precedence. Otherwise a suffix `:query`, `:document` or
        `:passage`, also with `-`, is the input type. Raises UnknownModel as `array[name]` does.
        """
        if len(name) > MAX_MODEL_NAME_CHARS:
            raise UnknownModel(
                f"a model name has at most {MAX_MODEL_NAME_CHARS} characters, this one has {len(name)}"
            )
        return self.match(name) or Resolved(self[name], None)

    def match(self, name: str) -> Resolved | None:
        """Return what `resolve` does for a name that is served, or None."""
        if name in self._by_name:
            return Resolved(self._by_name[name], None)
        for separator in INPUT_TYPE_SEPARATORS:
            base, _, suffix = name.rpartition(separator)
            if suffix in INPUT_TYPE_SUFFIXES and (engine := self.find(base)):
                return Resolved(engine, suffix)
        engine = self.find(name)
        return Resolved(engine, None) if engine else None

    def default_for(self, capability: Capability) -> AsyncEmbeddingEngine:
        """Return the engine for a request that names no model.

        That is the only one with this primary capability, else the only one with this capability at all. A
        single engine gets every request, and refuses those that it does not support. Raises ModelNotNamed
        when no engine or several qualify.
        """
        if len(self) == 1:
            return next(iter(self))
        supporting = [engine for engine in self if capability in engine.capabilities]
        primary = [engine for engine in supporting if engine.info.capabilities[0] == capability]
        for candidates in (primary, supporting):
            if len(candidates) == 1:
                return candidates[0]
        names = [engine.engine_args.served_model_name for engine in supporting]
        raise ModelNotNamed(
            f"the request names no model and {len(supporting)} models support {capability!r}; set `model` to"
            f" one of {quote_all(names or self.engines_dict)}"
        )

    async def astart(self) -> None:
        """Start every engine."""
        for engine in self:
            await engine.astart()

    async def astop(self) -> None:
        """Stop every engine after it has finished its accepted requests."""
        for engine in self:
            await engine.astop()

    async def __aenter__(self) -> AsyncEngineArray:
        for engine in self:
            await engine.__aenter__()
        return self

    async def __aexit__(self, *exception: object) -> None:
        for engine in self:
            await engine.__aexit__(*exception)

    def is_running(self) -> bool:
        """Return true when every engine is running."""
        return all(engine.is_running for engine in self)
