"""Compute for all front ends, keep them informed about the models, and sum their counters."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from starlette.types import ASGIApp, Receive, Scope, Send

from infinity_emb.cli.front_ends.counters import sum_counters
from infinity_emb.cli.front_ends.frames import Header
from infinity_emb.cli.front_ends.reports import keep_totals, merge_reports
from infinity_emb.cli.front_ends.session import RemoteRequest, Session, SessionEvents
from infinity_emb.cli.front_ends.shared_models import SharedModels
from infinity_emb.concurrency import call_in_loop
from infinity_emb.engine.array import AsyncEngineArray
from infinity_emb.engine.status import EngineStatus
from infinity_emb.scheduling.paced_call import PacedCall
from infinity_emb.scheduling.requests import PendingRequest

# If a front end does not answer within this time, its previous report is used.
REPORT_TIMEOUT_S = 0.5
# A change of the models does not wait longer for front ends; one that hangs is killed.
MODELS_TIMEOUT_S = 5.0


class EngineService:
    """The sessions of the engine process. Made in its event loop.

    array: the engines, started elsewhere.
    on_ready, on_lost: called with a session that can serve, and with one whose front end has ended.
    app: serves the requests that front ends forward. on_admit: called for each request of a front end.
    """

    app: ASGIApp

    def __init__(
        self,
        array: AsyncEngineArray,
        *,
        on_ready: Callable[[Session], None],
        on_lost: Callable[[Session], None],
    ) -> None:
        self.sessions: list[Session] = []
        self.on_admit: Callable[[], None] = lambda: None
        self._models = SharedModels(array)
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._done: deque[PendingRequest] = deque()
        self._is_finishing = False  # whether the event loop will look at `_done`
        self._ended: Header = {}  # the totals of front ends that have ended
        self._reports = PacedCall(self._ask_for_reports)
        for engine in self._models.engines:
            # Replaces the method, so that pages and metrics show the counters of all processes.
            vars(engine)["status"] = partial(self._sum_status, engine.status)

    def open_session(self) -> Session:
        """Return a session for a new front end, not connected yet."""
        events = SessionEvents(
            on_done=self._on_done,
            on_admit=lambda: self.on_admit(),
            on_changed=self._send_models,
            on_ready=self._on_ready,
            on_lost=self._lose,
        )
        session = Session(self._models, self._serve, events)
        self.sessions.append(session)
        session.send_models()
        return session

    def close(self) -> None:
        """Close all sessions, which drops their work."""
        for session in self.sessions:
            session.link.close()

    async def share_models(self) -> None:
        """Tell the front ends which models they serve; return when all of them do."""
        if taken := self._send_models():
            await asyncio.wait(taken, timeout=MODELS_TIMEOUT_S)

    async def collect_reports(self) -> None:
        """Ask the front ends for their counters, once for all requests that arrive together."""
        await self._reports.get()

    async def _ask_for_reports(self) -> None:
        if reports := [session.ask_for_report() for session in self.sessions]:
            await asyncio.wait(reports, timeout=REPORT_TIMEOUT_S)

    def list_reports(self) -> Sequence[Header]:
        """Return the latest reports, with one for all front ends that have ended."""
        return [self._ended, *(session.report for session in self.sessions)]

    def _sum_status(self, take_status: Callable[[], EngineStatus]) -> EngineStatus:
        status = take_status()
        models = [report["models"] for report in self.list_reports() if report]
        return sum_counters(status, [each[status.name] for each in models if status.name in each])

    def _send_models(self) -> list[asyncio.Future[None]]:
        return [session.send_models() for session in self.sessions]

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)

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
        ended = merge_reports([self._ended, keep_totals(session.report)])
        # One after the other at once: metrics are summed on a thread.
        self.sessions.remove(session)
        self._ended = ended
        self._on_lost(session)
