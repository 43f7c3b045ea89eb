"""Hold room in the engine process for a request of a front end, and its inputs until the model is loaded."""

from __future__ import annotations

from contextlib import ExitStack

from infinity_emb.cli.front_ends.frames import Header
from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.engine.host import OpenModel
from infinity_emb.scheduling.fair_queue import Flow
from infinity_emb.scheduling.requests import Item


class Ticket:
    """Room in the queue of a model, which stays open until the ticket is released.

    model: its number. waiting: items that arrived before the model was open.
    """

    def __init__(self, engine: AsyncEmbeddingEngine, header: Header) -> None:
        """Admit the inputs of a message. Raises Overloaded, BadInput and EngineNotReady."""
        self.model: int = header["model"]
        self.slot = engine.slot
        self.waiting: list[Item] = []
        self._open_model: OpenModel | None = None
        self._held = ExitStack()
        if not self.slot.is_running:
            raise self.slot.not_ready()
        client, lane = header["flow"]
        num_items, num_total = header["sizes"]
        flow = Flow(client, lane)
        engine.gate.admission.admit(num_items, flow, num_total=num_total)
        self._held.callback(engine.gate.admission.release, num_items, flow)

    @property
    def is_open(self) -> bool:
        """True once inputs need not wait for the model."""
        return self._open_model is not None

    @property
    def is_outdated(self) -> bool:
        """True if the model was loaded again since; inputs that were encoded before are not for it."""
        current = self.slot.open_model
        return self.is_open and current is not None and current is not self._open_model

    def open(self) -> None:
        """Keep the model open, which it is now."""
        self._open_model = self._held.enter_context(self.slot.use())

    def release(self) -> None:
        """Free the room."""
        self._held.close()
