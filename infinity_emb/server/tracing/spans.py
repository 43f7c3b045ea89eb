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
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Link, Span, SpanContext, Tracer, set_span_in_context
from starlette.types import Scope

from infinity_emb.scheduling.stages import ComputedBatch, RequestStages
from infinity_emb.server.requests.call import get_model

# Stages that the spans of batches cover.
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
    """Write the spans of the requests of one event loop.

    processor: takes finished spans, at a fifth of the cost of starting and ending each with the SDK; None for
    processors that need both calls.
    """

    def __init__(self, tracer: Tracer, processor: SpanProcessor | None = None) -> None:
        self._tracer = tracer
        self._processor = processor
        self._ids = RandomIdGenerator()
        # Of the batches whose requests have not all ended.
        self._batches: WeakKeyDictionary[ComputedBatch, SpanContext] = WeakKeyDictionary()

    def write(self, stages: TracedStages) -> None:
        """Write all spans below that of the request, and its batches unless another request has."""
        clock = _WallClock()
        for stage, started_s, ended_s in stages.intervals:
            if stage not in _OF_BATCHES:
                self._write_child(stage, clock.read(started_s), clock.read(ended_s), stages.span)
        for batch in stages.batches:
            links = [Link(self._find_batch(batch, clock))]
            launched_ns, stored_ns = clock.read(batch.launched_s), clock.read(batch.stored_s)
            self._write_child("compute", launched_ns, stored_ns, stages.span, links)
        stages.batches.clear()  # breaks the reference cycle of a request and its batches

    def _find_batch(self, batch: ComputedBatch, clock: _WallClock) -> SpanContext:
        """Return the context of the batch's span, which is written now if it is not yet."""
        if (known := self._batches.get(batch)) is not None:
            return known
        requests = [each for each in batch.requests if isinstance(each, TracedStages)]
        launched_ns, stored_ns = clock.read(batch.launched_s), clock.read(batch.stored_s)
        span = self._tracer.start_span(
            "batch",
            _NO_PARENT,
            links=[Link(each.span.get_span_context()) for each in requests],
            attributes={
                "infinity.model": requests[0].model,
                "infinity.items": batch.num_items,
                "infinity.tokens": batch.num_tokens,
            },
            start_time=launched_ns,
        )
        self._write_child("forward", launched_ns, clock.read(batch.computed_s), span)
        span.end(stored_ns)
        context = self._batches[batch] = span.get_span_context()
        batch.requests.clear()
        return context

    def _write_child(
        self, name: str, started_ns: int, ended_ns: int, parent: Span, links: Sequence[Link] = ()
    ) -> None:
        """Write a finished span below another one, which has been sampled for both."""
        if self._processor is None or not isinstance(parent, ReadableSpan):
            context = set_span_in_context(parent, _NO_PARENT)
            self._tracer.start_span(name, context, links=links, start_time=started_ns).end(ended_ns)
            return
        above = parent.get_span_context()
        context_of_span = SpanContext(
            above.trace_id,
            self._ids.generate_span_id(),
            is_remote=False,
            trace_flags=above.trace_flags,
            trace_state=above.trace_state,
        )
        self._processor.on_end(
            ReadableSpan(
                name,
                context_of_span,
                above,
                parent.resource,
                links=links,
                start_time=started_ns,
                end_time=ended_ns,
                instrumentation_scope=parent.instrumentation_scope,
            )
        )


class _WallClock:
    """Convert times of `time.monotonic` to nanoseconds since 1970, which spans need."""

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def read(self, monotonic_s: float) -> int:
        return self._offset_ns + int(monotonic_s * 1e9)
