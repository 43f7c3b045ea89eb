"""Admit the requests of one model within its limits; count those that are refused, late or cancelled."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext

from infinity_emb.concurrency import deadline
from infinity_emb.config.limits import QueueLimits
from infinity_emb.engine.host import OpenModel
from infinity_emb.engine.slot import ModelSlot
from infinity_emb.errors import BadInput, DeadlineExceeded
from infinity_emb.scheduling.admission import Admission
from infinity_emb.scheduling.fair_queue import Flow
from infinity_emb.scheduling.request_context import current_request, token_budget

# Counts inputs of a flow for the duration of a block; the last number is the size of the whole request.
HoldElsewhere = Callable[[int, Flow, int], AbstractContextManager[None]]
_NOWHERE = nullcontext()
_NO_DEADLINE = nullcontext()


class RequestGate:
    """Give each request room in the queue, a deadline, a token budget and the open model."""

    def __init__(self, slot: ModelSlot, limits: QueueLimits) -> None:
        self.num_requests = 0  # accepted, not yet completed
        self.num_timed_out = 0
        self.num_cancelled = 0  # mostly by clients that disconnected
        # A front end also counts its requests in the engine process, which holds the limits of all.
        self.hold_elsewhere: HoldElsewhere = lambda *_: _NOWHERE
        self._slot = slot
        self._limits = limits
        self.admission = Admission(
            name=slot.name,
            max_items=limits.max_queue_items,
            max_tokens=limits.max_queue_tokens,
            max_wait_s=limits.max_queue_wait_s or math.inf,
            progress=lambda: slot.host.pool.progress,
            backlog=slot.host.pool.queue.backlog,
        )

    @asynccontextmanager
    async def request(self, num_items: int, num_chars: int = 0) -> AsyncIterator[OpenModel]:
        """Admit a request; the model stays open until the end of the block, or until the request times out.

        num_chars: to tokenize, see `count_request_chars`.
        Raises Overloaded, EngineNotReady, BadInput and DeadlineExceeded.
        """
        if not self._slot.is_running:
            raise self._slot.not_ready()
        self._check_num_chars(num_chars)
        context = current_request()
        flow = context.flow(num_items)
        self.admission.admit(num_items, flow)
        self.num_requests += 1
        try:
            timeout_s = context.timeout_s or self._limits.request_timeout_s
            async with deadline(timeout_s) if timeout_s else _NO_DEADLINE:
                await self._slot.ensure_open()
                budget = token_budget(self._limits.max_request_tokens)
                with self._slot.use() as open_model, self.hold_elsewhere(num_items, flow, num_items), budget:
                    yield open_model
        except DeadlineExceeded:
            self.num_timed_out += 1
            raise
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        finally:
            self.admission.release(num_items, flow)
            self.num_requests -= 1

    @asynccontextmanager
    async def assist(self, open_model: OpenModel | None = None) -> AsyncIterator[OpenModel]:
        """Keep the model open for something that requests wait for, which has no limits and no deadline.

        open_model: of such a request; it may be closing. Raises EngineNotReady.
        """
        if open_model is None:
            if not self._slot.is_running:
                raise self._slot.not_ready()
            await self._slot.ensure_open()
        with self._slot.use(open_model) as used, self.hold_elsewhere(0, current_request().flow(0), 0):
            yield used

    @contextmanager
    def grow(self, num_before: int, num_items: int, num_chars: int = 0) -> Iterator[None]:
        """Make room for an admitted request that now has more inputs. Raises Overloaded and BadInput."""
        self._check_num_chars(num_chars)
        num_more = num_items - num_before
        flow = current_request().flow(num_before)
        self.admission.admit(num_more, flow, num_total=num_items)
        try:
            with self.hold_elsewhere(num_more, flow, num_items):
                yield
        finally:
            self.admission.release(num_more, flow)

    def check_room(self, flow: Flow) -> None:
        """Raise Overloaded, and count a refused request, if any request of the flow would be refused now.

        For a server that checks before it parses the request.
        """
        if self._slot.is_running:
            self.admission.check_capacity(flow)

    def _check_num_chars(self, num_chars: int) -> None:
        limit = self._limits.max_request_chars
        if num_chars > limit:
            raise BadInput(
                f"the request has {num_chars} characters to tokenize, its prompt or query counted with each"
                f" input, and the limit is {limit}; send fewer inputs or shorter texts, or start the server"
                " with a larger --max-request-chars"
            )
