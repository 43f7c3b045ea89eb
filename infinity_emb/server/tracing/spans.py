"""Write the recorded stages of a request as spans, once the request has ended.

A request has its own trace, or a part of its client's; a batch of many requests has a trace of its own:

    POST /embeddings          parse, tokenize, queue, compute (→ batch), wake, encode
    batch (→ each request)    forward

Spans that are written afterwards cost a request nothing while its client waits.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from weakref import WeakKeyDictionary

from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, Tracer, set_span_in_context
from opentelemetry.util.types import AttributeValue
from starlette.types import Scope

from infinity_emb.scheduling.stages import ComputedBatch, RequestStages
from infinity_emb.server.requests.call import get_model

# What the spans of the batches tell.
_OF_BATCHES = ("batch", "forward")
_NO_PARENT = Context()


class TracedStages(RequestStages):
    """The record of a request that has a span."""

    def __init__(self, span: Span, scope: Scope) -> None:
        super().__init__()
        self.batches: list[ComputedBatch] = []
        self.span = span
        self._scope = scope

    def add_batch(self, batch: ComputedBatch, queued_s: float) -> None:
        """Add the request's part of a batch, and the request to the batch."""
        super().add_batch(batch, queued_s)
        self.batches.append(batch)
        batch.requests.append(self)

    @property
    def model(self) -> str:
        """Return the served name of the model; "" until the request has named one."""
        return get_model(self._scope)


class SpanWriter:
    """Write the spans of the requests of one event loop."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        # Of the batches whose requests have not all ended.
        self._batches: WeakKeyDictionary[ComputedBatch, SpanContext] = WeakKeyDictionary()

    def write(self, stages: TracedStages) -> None:
        """Write all spans below that of the request, and its batches unless another request has."""
        clock = _WallClock()
        parent = set_span_in_context(stages.span, _NO_PARENT)
        for stage, started_s, ended_s in stages.intervals:
            if stage not in _OF_BATCHES:
                self._write(stage, clock.read(started_s), clock.read(ended_s), parent)
        for batch in stages.batches:
            links = [Link(self._find_batch(batch, clock))]
            launched_ns, stored_ns = clock.read(batch.launched_s), clock.read(batch.stored_s)
            self._write("compute", launched_ns, stored_ns, parent, links=links)
        stages.batches.clear()  # or else each would keep the other in memory until a garbage collection

    def _find_batch(self, batch: ComputedBatch, clock: _WallClock) -> SpanContext:
        """Return the context of the batch's span, which is written now if it is not yet."""
        if (known := self._batches.get(batch)) is not None:
            return known
        requests = [each for each in batch.requests if isinstance(each, TracedStages)]
        launched_ns, stored_ns = clock.read(batch.launched_s), clock.read(batch.stored_s)
        attributes: dict[str, AttributeValue] = {
            "infinity.model": requests[0].model,
            "infinity.items": batch.num_items,
            "infinity.tokens": batch.num_tokens,
        }
        links = [Link(each.span.get_span_context()) for each in requests]
        span = self._write("batch", launched_ns, stored_ns, _NO_PARENT, links=links, attributes=attributes)
        computed_ns = clock.read(batch.computed_s)
        self._write("forward", launched_ns, computed_ns, set_span_in_context(span, _NO_PARENT))
        context = self._batches[batch] = span.get_span_context()
        batch.requests.clear()
        return context

    def _write(
        self,
        name: str,
        started_ns: int,
        ended_ns: int,
        parent: Context,
        *,
        links: Sequence[Link] = (),
        attributes: dict[str, AttributeValue] | None = None,
    ) -> Span:
        span = self._tracer.start_span(
            name, parent, links=links, attributes=attributes, start_time=started_ns
        )
        span.end(ended_ns)
        return span


class _WallClock:
    """Convert times of `time.monotonic` to nanoseconds since 1970, which spans need."""

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def read(self, monotonic_s: float) -> int:
        return self._offset_ns + int(monotonic_s * 1e9)
