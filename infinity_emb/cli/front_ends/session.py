"""One front end, as the engine process sees it: what it has queued, and what it has been admitted for."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp

from infinity_emb.cli.front_ends.encoding import pack_error, pack_outputs, unpack_items
from infinity_emb.cli.front_ends.forwarded import ForwardedRequests
from infinity_emb.cli.front_ends.frames import Frame, Header
from infinity_emb.cli.front_ends.link import Link
from infinity_emb.cli.front_ends.shared_models import SharedModels
from infinity_emb.cli.front_ends.tickets import Ticket
from infinity_emb.errors import BadInput, EngineNotReady, Overloaded
from infinity_emb.scheduling.fair_queue import Flow
from infinity_emb.scheduling.requests import Item, PendingRequest
from infinity_emb.scheduling.stages import RequestStages
from infinity_emb.scheduling.worker_pool import unfinished


class RemoteRequest(PendingRequest):
    """A request of a front end, with its number there."""

    __slots__ = ("number", "session")

    def __init__(self, session: Session, header: Header, on_done: Callable[[PendingRequest], None]) -> None:
        client, lane = header["flow"]
        super().__init__(
            header["num_items"],
            on_done,
            flow=Flow(client, lane),
            stages=RequestStages() if "stages" in header else None,
        )
        self.session = session
        self.number: int = header["id"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionEvents:
    """Hold what a session calls, in the event loop unless another is named.

    on_done: on any thread, with each request that has ended. on_admit: for each request that is admitted.
    on_changed: when a front end encodes for a model whose files have changed.
    on_ready, on_lost: once each.
    """

    on_done: Callable[[PendingRequest], None]
    on_admit: Callable[[], None]
    on_changed: Callable[[], object]
    on_ready: Callable[[Session], None]
    on_lost: Callable[[Session], None]


class Session:
    """Serve one front end, in the event loop of the engine process.

    app: serves the requests that the front end forwards.
    report: the latest report of the front end. pid: of its process, 0 until it has started.
    """

    def __init__(self, models: SharedModels, app: ASGIApp, events: SessionEvents) -> None:
        self.link = Link(self._receive, on_turn=self._submit, on_lost=self._lose, reads_always=False)
        self.pid = 0
        self.report: Header = {}
        self._next_report: asyncio.Future[None] | None = None
        self._models = models
        self._events = events
        self._requests: dict[int, RemoteRequest] = {}
        self._tickets: dict[int, Ticket] = {}
        self._opening: set[asyncio.Task[None]] = set()  # tasks that wait for a model
        self._arrived: dict[int, list[Item]] = {}  # by model, until the end of this turn
        self._untaken: deque[asyncio.Future[None]] = deque()  # of lists of models, until they are taken
        self._forwarded = ForwardedRequests(self.link, app)
        self._receivers: dict[str, Callable[[Frame], None]] = {
            "submit": self._take_items,
            "cancel": self._cancel,
            "admit": self._admit,
            "release": self._release,
            **self._forwarded.receivers,
            "models": lambda _: self._untaken.popleft().set_result(None),
            "report": self._take_report,
            "started": self._set_pid,
            "ready": lambda _: self._events.on_ready(self),
        }

    @property
    def num_requests(self) -> int:
        """Requests that are queued or computed."""
        return len(self._requests)

    def send_models(self) -> asyncio.Future[None]:
        """Tell which models the front end serves; the future is done when it does, or has ended."""
        taken = asyncio.get_running_loop().create_future()
        if self.link.is_lost:
            taken.set_result(None)
            return taken
        self._untaken.append(taken)
        self.link.send(self._models.describe())
        return taken

    def ask_for_report(self) -> asyncio.Future[None]:
        """Return a future that is done when the front end has reported, or has ended."""
        if self._next_report is None:
            self._next_report = asyncio.get_running_loop().create_future()
            self.link.send({"kind": "report?"})
        return self._next_report

    def finish(self, request: RemoteRequest) -> None:
        """Send the outputs or the error of a request that has ended, unless it was cancelled meanwhile."""
        if self._requests.pop(request.number, None) is None:
            return
        if request.error is not None:
            self._fail(request.number, request.error)
            return
        outputs, arrays = pack_outputs(request.outputs)
        header: Header = {"kind": "done", "id": request.number, "outputs": outputs}
        if request.stages is not None:
            header["stages"] = [list(each) for each in request.stages.intervals]
        self.link.send(header, arrays)

    def _receive(self, frame: Frame) -> None:
        self._receivers[frame.header["kind"]](frame)

    def _take_items(self, frame: Frame) -> None:
        header = frame.header
        ticket = self._tickets.get(header["ticket"])
        if ticket is None:
            return  # refused: the front end is being told
        if ticket.is_outdated:
            self._fail(header["id"], unfinished())
            return
        request = self._requests.get(header["id"])
        if request is None:
            request = self._requests[header["id"]] = RemoteRequest(self, header, self._events.on_done)
        start, queued_s = header["start"], header["queued_s"]
        items = self._arrived.setdefault(ticket.model, []) if ticket.is_open else ticket.waiting
        items.extend(
            Item(encoded, request, index, queued_s)
            for index, encoded in enumerate(unpack_items(frame), start)
        )

    def _submit(self) -> None:
        """Queue all items that have arrived together."""
        if not self._arrived:
            return
        arrived, self._arrived = self._arrived, {}
        for model, items in arrived.items():
            self._queue(model, items)

    def _queue(self, model: int, items: list[Item]) -> None:
        try:
            self._models.engines[model].host.pool.queue.submit(items)
        except EngineNotReady as exc:
            for request in dict.fromkeys(item.request for item in items):
                assert isinstance(request, RemoteRequest)
                if self._requests.pop(request.number, None) is not None:
                    request.cancel()
                    self._fail(request.number, exc)

    def _cancel(self, frame: Frame) -> None:
        if (request := self._requests.pop(frame.header["id"], None)) is not None:
            request.cancel()

    def _admit(self, frame: Frame) -> None:
        number, engine = frame.header["id"], self._models.engines[frame.header["model"]]
        self._events.on_admit()
        try:
            ticket = self._tickets[number] = Ticket(engine, frame.header)
        except (Overloaded, BadInput, EngineNotReady) as exc:
            self._refuse(number, exc)
            return
        if ticket.slot.open_model is not None:
            self._open(number, ticket)
        else:
            task = asyncio.ensure_future(self._load(number, ticket))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _load(self, number: int, ticket: Ticket) -> None:
        """Wait for a model that is being loaded, then queue what has arrived meanwhile."""
        try:
            await ticket.slot.ensure_open()
        except EngineNotReady as exc:
            self._refuse(number, exc)
            return
        if number in self._tickets:  # else cancelled meanwhile
            self._open(number, ticket)

    def _open(self, number: int, ticket: Ticket) -> None:
        if not self._models.is_unchanged(ticket.model):
            name = ticket.slot.name
            self._refuse(number, EngineNotReady(f"the files of model {name!r} have changed; try again"))
            self._events.on_changed()
            return
        ticket.open()
        if ticket.waiting:
            self._queue(ticket.model, ticket.waiting)

    def _refuse(self, number: int, error: Exception) -> None:
        if (ticket := self._tickets.pop(number, None)) is not None:
            ticket.release()
        self.link.send({"kind": "refused", "id": number, "error": pack_error(error)})

    def _release(self, frame: Frame) -> None:
        if (ticket := self._tickets.pop(frame.header["id"], None)) is not None:
            ticket.release()

    def _fail(self, number: int, error: Exception) -> None:
        self.link.send({"kind": "failed", "id": number, "error": pack_error(error)})

    def _take_report(self, frame: Frame) -> None:
        self.report = frame.header["report"]
        self._end_report()

    def _end_report(self) -> None:
        if self._next_report is not None:
            self._next_report.set_result(None)
            self._next_report = None

    def _set_pid(self, frame: Frame) -> None:
        self.pid = frame.header["pid"]

    def _lose(self) -> None:
        """Cancel the requests of the front end and release what it was admitted for."""
        for request in self._requests.values():
            request.cancel()
        for ticket in self._tickets.values():
            ticket.release()
        self._requests.clear()
        self._tickets.clear()
        self._arrived.clear()
        self._forwarded.disconnect()
        while self._untaken:
            self._untaken.popleft().set_result(None)
        self._end_report()
        self._events.on_lost(self)
