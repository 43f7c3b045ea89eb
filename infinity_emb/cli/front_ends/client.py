"""Talk to the engine process from a front end: queue items and admit requests."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from infinity_emb.cli.front_ends.encoding import pack_items, unpack_error, unpack_outputs
from infinity_emb.cli.front_ends.frames import Frame, Header
from infinity_emb.cli.front_ends.link import Link
from infinity_emb.errors import EngineNotReady, ServingError
from infinity_emb.items import count_value_bytes
from infinity_emb.scheduling.fair_queue import Flow
from infinity_emb.scheduling.requests import Item, PendingRequest
from infinity_emb.scheduling.stages import Interval

# Without a default: the engine process drops what belongs to no ticket, so that is never sent.
_ticket_id: ContextVar[int] = ContextVar("infinity_admission_ticket")


@dataclass(slots=True)
class _Ticket:
    """An admission that the engine process has not refused yet."""

    task: asyncio.Task[Any]
    refusal: ServingError | None = None


class EngineClient:
    """The engine process, for one front end. Used in its event loop only.

    on_drain: called when the front end must stop. on_lost_callbacks: called when the link has ended.
    on_abort_callbacks: called when what is not finished must end.
    on_dump: called when the front end must log its state. on_models: called with the models that it serves.
    make_report: returns the metrics of the front end, as JSON values.
    receivers: what is called with a message, by its kind.
    """

    def __init__(self) -> None:
        self.link = Link(self._receive, on_lost=self._lose)
        self.make_report: Callable[[], Header] = dict
        self.on_drain: Callable[[], None] = lambda: None
        self.on_dump: Callable[[], None] = lambda: None
        self.on_models: Callable[[Header], None] = lambda _: None
        self.on_lost_callbacks: list[Callable[[], None]] = []
        self.on_abort_callbacks: list[Callable[[], None]] = []
        self._numbers = itertools.count(1)
        self._requests: dict[int, PendingRequest] = {}
        self._request_ids: dict[PendingRequest, int] = {}
        self._models: dict[int, int] = {}  # of each request
        self._tickets: dict[int, _Ticket] = {}
        self._knows_models = asyncio.Event()
        self.receivers: dict[str, Callable[[Frame], None]] = {
            "done": self._complete,
            "failed": self._fail,
            "refused": self._refuse,
            "models": self._take_models,
            "report?": lambda _: self.link.send({"kind": "report", "report": self.make_report()}),
            "drain": lambda _: self.on_drain(),
            "dump": lambda _: self.on_dump(),
        }

    def submit(self, model: int, items: Sequence[Item]) -> None:
        """Queue items of one request, within `hold`. Raises EngineNotReady and BackendFailed."""
        if self.link.is_lost:
            raise engine_lost()
        request = items[0].request
        header, arrays = pack_items([item.encoded for item in items])
        number = self._request_ids.get(request)
        if number is None:
            number = next(self._numbers)
            self._requests[number], self._request_ids[request] = request, number
            self._models[number] = model
            request.on_cancel = self._cancel
        header |= {
            "kind": "submit",
            "id": number,
            "ticket": _ticket_id.get(),
            "model": model,
            "flow": tuple(request.flow),
            "num_items": request.num_items,
            "start": items[0].index,
            "queued_s": items[0].queued_s,
        }
        if request.stages is not None:
            header["stages"] = True
        self.link.send(header, arrays)

    @contextmanager
    def hold(self, model: int, num_items: int, flow: Flow, num_total: int) -> Iterator[None]:
        """Admit inputs in the engine process, whose limits are those of all front ends together.

        Does not wait for the admission: if it is refused, the block is cancelled, Overloaded is raised, and
        nothing that the block has queued is computed.
        """
        task = asyncio.current_task()
        assert task is not None
        number = next(self._numbers)
        ticket = self._tickets[number] = _Ticket(task)
        token = _ticket_id.set(_ticket_id.get(number))
        sizes = num_items, num_total
        self.link.send({"kind": "admit", "id": number, "model": model, "flow": tuple(flow), "sizes": sizes})
        try:
            yield
        except asyncio.CancelledError:
            if ticket.refusal is None or (sys.version_info >= (3, 11) and task.uncancel()):
                raise
            raise ticket.refusal from None
        finally:
            with suppress(ValueError):  # an event loop that is closed ends a request in another context
                _ticket_id.reset(token)
            del self._tickets[number]
            self.link.send({"kind": "release", "id": number})

    def fail_all(self, model: int, error: ServingError) -> int:
        """Fail the unfinished requests of a model; return the number of inputs."""
        numbers = [number for number, each in self._models.items() if each == model]
        requests = [request for number in numbers if (request := self._take(number)) is not None]
        for number, request in zip(numbers, requests, strict=True):
            self.link.send({"kind": "cancel", "id": number})
            self._end(request, error)
        return sum(request.num_items for request in requests)

    async def wait_for_models(self) -> None:
        """Wait until it is known which models are served, or the link has ended."""
        await self._knows_models.wait()

    def _receive(self, frame: Frame) -> None:
        self.receivers[frame.header["kind"]](frame)

    def _cancel(self, request: PendingRequest) -> None:
        number = self._request_ids.get(request)
        if number is not None:
            self._take(number)
            self.link.send({"kind": "cancel", "id": number})

    def _take(self, number: int) -> PendingRequest | None:
        """Forget a request that has ended; None if it was cancelled before."""
        request = self._requests.pop(number, None)
        if request is not None:
            del self._request_ids[request], self._models[number]
        return request

    def _complete(self, frame: Frame) -> None:
        request = self._take(frame.header["id"])
        if request is None:
            return
        request.outputs = unpack_outputs(frame.header["outputs"], frame.arrays)
        if request.stages is not None:
            request.stages.intervals += [Interval(*each) for each in frame.header["stages"]]
        if request.on_progress is not None:
            request.on_progress(request.num_items)
        if request.on_outputs is not None:
            outputs = request.outputs.values()
            request.on_outputs(sum(count_value_bytes(entry) for output in outputs for entry in output))
        request.on_done(request)

    def _fail(self, frame: Frame) -> None:
        number = frame.header["id"]
        if (request := self._take(number)) is not None:
            # Inputs that were sent meanwhile have begun a request there that would never end.
            self.link.send({"kind": "cancel", "id": number})
            self._end(request, unpack_error(frame.header["error"]))

    def _end(self, request: PendingRequest, error: ServingError) -> None:
        request.set_error(error)
        request.on_done(request)

    def _refuse(self, frame: Frame) -> None:
        ticket = self._tickets.get(frame.header["id"])
        if ticket is not None:
            ticket.refusal = unpack_error(frame.header["error"])
            ticket.task.cancel()

    def _take_models(self, frame: Frame) -> None:
        self.on_models(frame.header)
        self._knows_models.set()
        self.link.send({"kind": "models"})

    def _lose(self) -> None:
        """Fail all unfinished requests."""
        for number in list(self._requests):
            if (request := self._take(number)) is not None:
                self._end(request, engine_lost())
        self._knows_models.set()
        for on_lost in self.on_lost_callbacks:
            on_lost()


def engine_lost() -> EngineNotReady:
    """Return the error for requests to an engine process that has ended."""
    return EngineNotReady("the engine process has ended; restart the server")
