"""Compute for all front ends, and send each the state of the whole server."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Sequence

from infinity_emb.cli.front_ends.frames import Header
from infinity_emb.cli.front_ends.reports import keep_totals, measure_process, merge_reports
from infinity_emb.cli.front_ends.session import RemoteRequest, Session
from infinity_emb.concurrency import call_in_loop
from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.engine.status import EngineStatus
from infinity_emb.scheduling.requests import PendingRequest

# If a front end does not answer within this time, its previous report is used.
REPORT_TIMEOUT_S = 0.5


class EngineService:
    """The sessions of the engine process. Made in its event loop.

    on_ready, on_lost: called with a session that can serve, and with one whose front end has ended.
    """

    def __init__(
        self,
        engines: Sequence[AsyncEmbeddingEngine],
        *,
        on_ready: Callable[[Session], None],
        on_lost: Callable[[Session], None],
    ) -> None:
        self.sessions: list[Session] = []
        self._engines = engines
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._done: deque[PendingRequest] = deque()
        self._is_finishing = False  # whether the event loop will look at `_done`
        self._ended: Header = {}  # the totals of front ends that have ended
        self._answers: set[asyncio.Task[None]] = set()

    def open_session(self) -> Session:
        """Return a session for a new front end, not connected yet."""
        session = Session(
            self._engines,
            on_done=self._on_done,
            answer=self._answer_soon,
            on_ready=self._on_ready,
            on_lost=self._lose,
        )
        self.sessions.append(session)
        return session

    def _on_done(self, request: PendingRequest) -> None:
        """Hand a request to the event loop, which is woken once for all that end together."""
        self._done.append(request)
        if not self._is_finishing:
            self._is_finishing = True
            call_in_loop(self._loop, self._finish_all)

    def _finish_all(self) -> None:
        self._is_finishing = False  # before the last look: a later request wakes the loop again
        while self._done:
            request = self._done.popleft()
            assert isinstance(request, RemoteRequest)
            request.session.finish(request)

    def _lose(self, session: Session) -> None:
        self.sessions.remove(session)
        self._ended = merge_reports([self._ended, keep_totals(session.report)])
        self._on_lost(session)

    def _answer_soon(self, session: Session, question: Header) -> None:
        task = asyncio.ensure_future(self._answer(session, question))
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    async def _answer(self, session: Session, question: Header) -> None:
        answer: Header = {"kind": "state", "id": question["id"]}
        if question["with_reports"]:
            others = [other for other in self.sessions if other is not session]
            if reports := [other.ask_for_report() for other in others]:
                await asyncio.wait(reports, timeout=REPORT_TIMEOUT_S)
            answer["reports"] = [self._ended, measure_process(), *(other.report for other in others)]
        answer["models"] = [_describe(engine) for engine in self._engines]
        session.link.send(answer)


def _describe(engine: AsyncEmbeddingEngine) -> Header:
    status: EngineStatus = engine.status()
    return {
        "pid": os.getpid(),
        "is_ready": status.is_ready,
        "is_dead": status.is_dead,
        "is_overloaded": status.is_overloaded,
        "num_items": status.num_items,
        "num_waiting_items": status.num_waiting_items,
        "num_waiting_tokens": status.num_waiting_tokens,
        "queue_fraction": status.queue_fraction,
        "estimated_wait_s": dict(status.estimated_wait_s),
        "num_refused_requests": status.num_refused_requests,
        "worker": tuple(status.worker),
        "num_replicas": status.num_replicas,
        "device_memory": tuple(status.device_memory),
        "histograms": {name: (each.counts, each.total) for name, each in status.histograms.items()},
        "pool": {
            name: value if isinstance(value, str | list) else str(value)
            for name, value in status.pool.items()
        },
    }
