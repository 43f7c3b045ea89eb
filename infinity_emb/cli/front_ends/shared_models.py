"""The models that front ends encode for, as the engine process and a front end see them.

Front ends are forks of a process that has loaded the models of the command line, so they have the encoders of
these. Requests for a model that was loaded later, or whose files have changed, are forwarded as they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from infinity_emb.cli.front_ends.frames import Header
from infinity_emb.engine.array import AsyncEngineArray
from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.hub.version import model_version

_DRAIN_TIMEOUT_S = 86_400.0  # the deadline is that of the engine process, where requests end


class SharedModels:
    """The models of the engine process that front ends can encode for.

    engines: those of the command line; messages name them by their index.
    """

    def __init__(self, array: AsyncEngineArray) -> None:
        self.engines: Sequence[AsyncEmbeddingEngine] = tuple(array)
        self._array = array
        self._infos = [engine.info for engine in self.engines]

    def is_unchanged(self, number: int) -> bool:
        """Return true unless other files were found when the model was loaded again."""
        engine, known = self.engines[number], self._infos[number]
        if engine.info is known:
            return True
        options = engine.engine_args.load
        if model_version(options, engine.info) != model_version(options, known):
            return False
        self._infos[number] = engine.info
        return True

    def describe(self) -> Header:
        """Return the message that tells a front end which models it serves, and whether there are others."""
        served = set(map(id, self._array))
        numbers = [
            number
            for number, engine in enumerate(self.engines)
            if id(engine) in served and self.is_unchanged(number)
        ]
        return {"kind": "models", "numbers": numbers, "are_all": len(numbers) == len(self._array)}


class LocalModels:
    """The models that a front end encodes for.

    array: what the app of the front end serves. are_all: whether the server has no other models.
    """

    def __init__(self, array: AsyncEngineArray) -> None:
        self.are_all = True
        self._array = array
        self._engines = tuple(array)
        self._frees: set[asyncio.Task[None]] = set()

    def update(self, numbers: Iterable[int], *, are_all: bool) -> None:
        """Stop serving models that the engine process no longer shares, and free them."""
        kept = {id(self._engines[number]) for number in numbers}
        for engine in list(self._array):
            if id(engine) not in kept:
                self._array.remove(engine)
                task = asyncio.ensure_future(_free(engine))
                self._frees.add(task)
                task.add_done_callback(self._frees.discard)
        self.are_all = are_all

    def has_name(self, name: object) -> bool:
        """Return true for a name or alias of a model, exactly as it is served."""
        return any(name in engine.engine_args.list_names() for engine in self._array)


async def _free(engine: AsyncEmbeddingEngine) -> None:
    """Free a model without a collection of garbage, which would copy the memory that processes share."""
    await engine.slot.stop(_DRAIN_TIMEOUT_S)
    engine.slot.model = None
