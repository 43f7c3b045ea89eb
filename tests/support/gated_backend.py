"""Hold the fake backend, or its encoder, until a test opens a gate."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

from infinity_emb.backends.base import Backend, InFlightBatch
from infinity_emb.items import Encoded
from tests.support.event_loop import PATIENCE_S


class Gate:
    """Block every thread that calls it until a test opens it."""

    def __init__(self) -> None:
        self.is_reached = threading.Event()
        self.is_open = threading.Event()

    def __call__(self, *args: object) -> None:
        self.is_reached.set()
        assert self.is_open.wait(PATIENCE_S), "the test did not open the gate"

    def open(self) -> None:
        self.is_open.set()

    def block_until_reached(self) -> None:
        assert self.is_reached.wait(PATIENCE_S), "no thread reached the gate"

    async def wait_until_reached(self) -> None:
        await asyncio.to_thread(self.block_until_reached)


class GatedBackend(Gate):
    """Record the texts of each batch, then compute it once the gate is open.

    backend: a replica of the fake engine, whose token ids are code points.
    """

    num_in_flight = 1
    shares_device = False

    def __init__(self, backend: Backend) -> None:
        super().__init__()
        self.backend = backend
        self.seen: list[str] = []

    def prepare_thread(self) -> None:
        pass

    def free_memory(self) -> None:
        pass

    def launch(self, batch: Sequence[Encoded], *, full_precision: bool = False) -> InFlightBatch:
        self.seen += ["".join(map(chr, item.token_ids)) for item in batch]
        self()
        return self.backend.launch(batch, full_precision=full_precision)


class GatedEncoder(Gate):
    """Encode as `encode` does; inputs for which `is_held` is true wait for the gate."""

    def __init__(self, encode: Callable[..., list[Encoded]], is_held: Callable[[Any], bool]) -> None:
        super().__init__()
        self._encode = encode
        self._is_held = is_held

    def __call__(  # type: ignore[override]  # an encoder that is a gate as well
        self, inputs: Sequence[Any], options: Any
    ) -> list[Encoded]:
        if self._is_held(inputs[0]):
            super().__call__()
        return self._encode(inputs, options)
