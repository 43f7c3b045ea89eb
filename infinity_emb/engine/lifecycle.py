"""Start and stop an engine that independent callers share."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

from infinity_emb.concurrency import ExclusiveTask
from infinity_emb.engine.embedding import EmbeddingService
from infinity_emb.engine.slot import ModelSlot


class Lifecycle:
    """Keep an engine running while a block uses it; blocks may nest and overlap."""

    def __init__(self, slot: ModelSlot, embedder: EmbeddingService) -> None:
        self._slot = slot
        self._embedder = embedder
        self._stopping: ExclusiveTask[None] = ExclusiveTask()
        self._num_blocks = 0
        self._stops_after_blocks = True  # whether the first of the open blocks has started the engine

    async def start(self) -> None:
        """Start the engine unless it is running. Raises EngineNotReady after a fork."""
        await self._stopping.wait()
        if not self._slot.is_running:
            self._slot.start()
        await self._embedder.start()

    async def stop(self, drain_timeout_s: float) -> None:
        """Stop the engine, whatever blocks are open."""
        task = self._stopping.task or self._stopping.begin(self._slot.stop(drain_timeout_s))
        await asyncio.wait([task])

    async def enter_block(self) -> None:
        """Start the engine for a block."""
        await self._stopping.wait()
        if not self._num_blocks:
            self._stops_after_blocks = not self._slot.is_running
        self._num_blocks += 1
        with ExitStack() as on_failure:
            on_failure.callback(self._close_block)
            await self.start()
            on_failure.pop_all()

    async def leave_block(self, drain_timeout_s: float) -> None:
        """Stop the engine after the last block, unless it was running before the first."""
        self._close_block()
        if not self._num_blocks and self._stops_after_blocks:
            await self.stop(drain_timeout_s)

    def _close_block(self) -> None:
        self._num_blocks = max(0, self._num_blocks - 1)
