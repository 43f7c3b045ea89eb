"""One front end, as the engine process sees it: what it has queued, and what it has been admitted for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from infinity_emb.cli.front_ends.encoding import pack_error, pack_outputs, unpack_items
from infinity_emb.cli.front_ends.frames import Frame, Header
from infinity_emb.cli.front_ends.link import Link
from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.errors import BadInput, EngineNotReady, Overloaded
from infinity_emb.scheduling.fair_queue import Flow
from infinity_emb.scheduling.requests import Item, PendingRequest
from infinity_emb.scheduling.stages import RequestStages


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


class Session:
    """Serve one front end, in the event loop of the engine process.

    on_done: called on any thread with each request that has ended.
    answer: answers a request for the state. on_ready, on_lost: called once each.
    report: the latest report of the front end. pid: of its process, 0 until it is ready.
    """

    def __init__(
        self,
        engines: Sequence[AsyncEmbeddingEngine],
        *,
        on_done: Callable[[PendingRequest], None],
        answer: Callable[[Session, Header], None],
        on_ready: Callable[[Session], None],
        on_lost: Callable[[Session], None],
    ) -> None:
        self.link = Link(self._receive, on_turn=self._submit, on_lost=self._lose, reads_always=False)
        self.pid = 0
        self.report: Header = {}
        self._next_report: asyncio.Future[None] | None = None
        self._engines = engines
        self._on_done = on_done
        self._on_lost = on_lost
        self._requests: dict[int, RemoteRequest] = {}
        self._releases: dict[int, Callable[[], None]] = {}  # of what is admitted, by ticket
        self._arrived: dict[int, list[Item]] = {}  # by model, until the end of this turn
        self._receivers: dict[str, Callable[[Frame], None]] = {
            "submit": self._take_items,
            "cancel": self._cancel,
            "admit": self._admit,
            "release": self._release,
            "state?": lambda frame: answer(self, frame.header),
            "report": self._take_report,
            "ready": lambda frame: self._be_ready(frame, on_ready),
        }

    @property
    def num_requests(self) -> int:
        """Requests that are queued or computed."""
        return len(self._requests)

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
        if header["ticket"] not in self._releases:
            return  # refused: the front end is being told
        request = self._requests.get(header["id"])
        if request is None:
            request = self._requests[header["id"]] = RemoteRequest(self, header, self._on_done)
        start, queued_s = header["start"], header["queued_s"]
        self._arrived.setdefault(header["model"], []).extend(
            Item(encoded, request, index, queued_s)
            for index, encoded in enumerate(unpack_items(frame), start)
        )

    def _submit(self) -> None:
        """Queue all items that have arrived together."""
        if not self._arrived:
            return
        arrived, self._arrived = self._arrived, {}
        for model, items in arrived.items():
            try:
                self._engines[model].host.pool.queue.submit(items)
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
        header = frame.header
        client, lane = header["flow"]
        num_items, num_total = header["sizes"]
        flow = Flow(client, lane)
        admission = self._engines[header["model"]].gate.admission
        try:
            admission.admit(num_items, flow, num_total=num_total)
        except (Overloaded, BadInput) as exc:
            self.link.send({"kind": "refused", "id": header["id"], "error": pack_error(exc)})
        else:
            self._releases[header["id"]] = partial(admission.release, num_items, flow)

    def _release(self, frame: Frame) -> None:
        if (release := self._releases.pop(frame.header["id"], None)) is not None:
            release()

    def _fail(self, number: int, error: Exception) -> None:
        self.link.send({"kind": "failed", "id": number, "error": pack_error(error)})

    def _take_report(self, frame: Frame) -> None:
        self.report = frame.header["report"]
        self._end_report()

    def _end_report(self) -> None:
        if self._next_report is not None:
            self._next_report.set_result(None)
            self._next_report = None

    def _be_ready(self, frame: Frame, on_ready: Callable[[Session], None]) -> None:
        self.pid = frame.header["pid"]
        on_ready(self)

    def _lose(self) -> None:
        """Cancel the requests of the front end and release what it was admitted for."""
        for request in self._requests.values():
            request.cancel()
        for release in self._releases.values():
            release()
        self._requests.clear()
        self._releases.clear()
        self._arrived.clear()
        self._end_report()
        self._on_lost(self)
