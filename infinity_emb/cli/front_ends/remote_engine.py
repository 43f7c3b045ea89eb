"""An engine of a front end: everything but the batches, which the engine process computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from infinity_emb.backends.base import Backend, LoadedModel
from infinity_emb.cli.front_ends.client import EngineClient, engine_lost
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.engine.parts import EngineParts, assemble_parts
from infinity_emb.errors import EngineNotReady, StartupError
from infinity_emb.hardware import MemoryUse
from infinity_emb.scheduling.requests import Item
from infinity_emb.scheduling.work_queue import WorkQueue
from infinity_emb.scheduling.worker_pool import WorkerPool, unfinished


class RemoteQueue(WorkQueue):
    """Send items to the engine process instead of queueing them here."""

    def __init__(self, client: EngineClient, model: int) -> None:
        super().__init__(max_batch_tokens=1, max_batch_items=1)
        self._client = client
        self._model = model

    @property
    def is_accepting(self) -> bool:
        return super().is_accepting and not self._client.link.is_lost

    def submit(self, items: list[Item], *, wakes: bool = True) -> None:
        if not self.is_accepting:
            raise self.not_ready()
        self._client.submit(self._model, items)

    def not_ready(self) -> EngineNotReady:
        return engine_lost() if self._client.link.is_lost else super().not_ready()


class RemotePool(WorkerPool):
    """The worker pool of the engine process, as a front end sees it."""

    def __init__(self, client: EngineClient, model: int) -> None:
        super().__init__([], max_batch_tokens=1, max_batch_items=1)
        self.queue = RemoteQueue(client, model)
        self._client = client
        self._model = model

    @property
    def is_alive(self) -> bool:
        return self.queue.is_accepting

    @property
    def is_ready(self) -> bool:
        return self.is_alive

    def start(self, backends: Sequence[Backend] = ()) -> None:
        """Accept items: the threads are those of the engine process."""
        self.queue.open()

    def close(self, on_closed: Callable[[], None]) -> None:
        """Refuse new items. What was accepted ends with the requests that wait for it."""
        self.queue.close()
        on_closed()

    def fail_queued(self) -> int:
        """Refuse new items and fail those that the engine process has, queued or not."""
        self.queue.close()
        return self._client.fail_all(self._model, unfinished())

    def fail_all(self) -> int:
        return self.fail_queued()


class RemoteEngine(AsyncEmbeddingEngine):
    """An engine that encodes its inputs here and has them computed by the engine process."""

    def __init__(
        self, engine: AsyncEmbeddingEngine, client: EngineClient, number: int, *, num_front_ends: int
    ) -> None:
        self._load_parts = partial(_assemble, engine.slot.model)
        super().__init__(_divide_cache(engine.engine_args, num_front_ends))
        del self._load_parts  # refers to the model
        self.host.pool = RemotePool(client, number)
        self.gate.hold_elsewhere = partial(client.hold, number)


def _divide_cache(args: EngineArgs, num_front_ends: int) -> EngineArgs:
    """Divide the memory of the cache; the file on disk is shared. The engine process unloads idle models."""
    share_mb = -(-args.vector_memory_cache_mb // num_front_ends)
    return replace(args, vector_memory_cache_mb=share_mb, idle_unload_s=0)


def _assemble(model: LoadedModel | None, args: EngineArgs) -> EngineParts:
    """Put an engine together around a model that this process must not compute with."""
    assert model is not None, "the model was unloaded before the front ends were made"

    def refuse_to_load() -> LoadedModel:
        raise StartupError("front ends load no models; start the server with --api-servers 1")

    # All tokenizer threads in each front end, since a large request has only one of them.
    return assemble_parts(keep_preprocessing(model), args, refuse_to_load)


def keep_preprocessing(model: LoadedModel) -> LoadedModel:
    """Return a model without what computes it, so that its weights can be freed where they are."""
    return replace(
        model,
        replicas=[],
        free_memory=lambda: None,
        measure_memory=lambda: MemoryUse(0, 0),
        time_network=None,
    )
