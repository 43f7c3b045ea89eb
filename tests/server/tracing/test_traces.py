from __future__ import annotations

import asyncio
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id

from infinity_emb.errors import StartupError
from infinity_emb.server.tracing import provider
from tests.support.tiny_server import build_debug_app, client_of, debug_args, embed

pytestmark = pytest.mark.anyio

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
CLIENT_SPAN_ID = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{CLIENT_SPAN_ID}-01"
STAGES = ["parse", "tokenize", "queue", "compute", "wake", "encode"]


class KeptExporter(InMemorySpanExporter):
    """Keep the spans of several apps: the first that stops would close it."""

    def shutdown(self) -> None:
        pass


class Spans:
    """The spans that an app has exported, complete once the app has stopped."""

    def __init__(self) -> None:
        self.exporter = KeptExporter()

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all if span.name == name]

    @property
    def all(self) -> Sequence[ReadableSpan]:
        return self.exporter.get_finished_spans()

    @property
    def servers(self) -> list[ReadableSpan]:
        return [span for span in self.all if span.kind is SpanKind.SERVER]

    def below(self, parent: ReadableSpan) -> list[ReadableSpan]:
        context = parent.get_span_context()
        assert context is not None
        found = [span for span in self.all if span.parent and span.parent.span_id == context.span_id]
        return sorted(found, key=lambda span: span.start_time or 0)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Spans:
    """Replace the exporter; everything before it is real."""
    found = Spans()

    def make_exporters(environ: object) -> list[SpanExporter]:
        return [found.exporter]

    monkeypatch.setattr(provider, "make_exporters", make_exporters)
    return found


@contextmanager
def missing(package: str) -> Iterator[None]:
    """Make a package look as if it were not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, package, None)
        for name in [*sys.modules]:
            if name == package or name.startswith(f"{package}."):
                patch.setitem(sys.modules, name, None)
        for name in [*sys.modules]:
            if name.startswith("infinity_emb.server.tracing."):
                patch.delitem(sys.modules, name)
        yield


def links_of(span: ReadableSpan) -> set[str]:
    return {format_span_id(link.context.span_id) for link in span.links}


def id_of(span: ReadableSpan) -> str:
    context = span.get_span_context()
    assert context is not None
    return format_span_id(context.span_id)


async def test_a_request_has_a_span_per_stage_within_its_own(spans: Spans) -> None:
    async with client_of(build_debug_app(otel=True)) as client:
        response = await embed(client, ["hello", "hi"])
    [server] = spans.servers
    assert server.name == "POST /embeddings"
    assert dict(server.attributes or {}) == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": "/embeddings",
        "infinity.model": "debug",
        "infinity.request_id": response.headers["x-request-id"],
        "url.path": "/embeddings",
        "url.scheme": "http",
    }
    assert [span.name for span in spans.below(server)] == STAGES
    for span in spans.below(server):
        assert (server.start_time or 0) <= (span.start_time or 0) <= (span.end_time or 0)
        assert (span.end_time or 0) <= (server.end_time or 0)


async def test_the_client_s_trace_goes_on(spans: Spans) -> None:
    headers = {"traceparent": TRACEPARENT, "tracestate": "vendor=value"}
    async with client_of(build_debug_app(otel=True)) as client:
        await client.post("/embeddings", json={"input": "hello"}, headers=headers)
    [server] = spans.servers
    assert server.parent is not None
    assert format_span_id(server.parent.span_id) == CLIENT_SPAN_ID
    for span in (server, *spans.below(server)):
        context = span.get_span_context()
        assert context is not None
        assert format_trace_id(context.trace_id) == TRACE_ID
        assert context.trace_state.get("vendor") == "value"


@pytest.mark.parametrize("traceparent", ["", "nonsense", f"ff-{TRACE_ID}-{CLIENT_SPAN_ID}-01", "00-0-0-01"])
async def test_an_invalid_traceparent_starts_another_trace(spans: Spans, traceparent: str) -> None:
    async with client_of(build_debug_app(otel=True)) as client:
        response = await client.get("/models", headers={"traceparent": traceparent})
    assert response.status_code == 200
    [server] = spans.servers
    assert server.parent is None


async def test_many_requests_are_linked_to_their_batch(spans: Spans) -> None:
    app = build_debug_app(debug_args("debug?delay_s=0.1"), otel=True)
    async with client_of(app) as client:
        # While the first batch is computed the others wait, and then share one.
        first = asyncio.create_task(embed(client, "first"))
        await asyncio.sleep(0.05)
        await asyncio.gather(first, *(embed(client, f"text {number}") for number in range(5)))
    alone, shared = sorted(spans.named("batch"), key=lambda span: len(span.links))
    servers = {id_of(server) for server in spans.servers}
    assert (len(alone.links), len(shared.links)) == (1, 5)
    assert links_of(alone) | links_of(shared) == servers
    assert (shared.parent, dict(shared.attributes or {})) == (
        None,
        {"infinity.model": "debug", "infinity.items": 5, "infinity.tokens": 30},
    )
    [forward] = spans.below(shared)
    assert forward.name == "forward"
    assert (forward.end_time or 0) - (forward.start_time or 0) >= 0.1e9
    of_requests = Counter(link for span in spans.named("compute") for link in links_of(span))
    assert of_requests == {id_of(alone): 1, id_of(shared): 5}


async def test_a_client_that_is_not_sampled_is_not_traced(spans: Spans) -> None:
    async with client_of(build_debug_app(otel=True)) as client:
        headers = {"traceparent": TRACEPARENT[:-1] + "0"}
        await client.post("/embeddings", json={"input": "hello"}, headers=headers)
    assert not spans.all


async def test_the_sampler_of_the_environment_decides_for_batches_too(
    spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    async with client_of(build_debug_app(otel=True)) as client:
        await embed(client)
        assert not spans.all
        headers = {"traceparent": TRACEPARENT}
        await client.post("/embeddings", json={"input": "hello"}, headers=headers)
    assert len(spans.servers) == len(spans.named("batch")) == len(spans.named("forward")) == 1


async def test_the_environment_names_the_service(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    async with client_of(build_debug_app(otel=True)) as client:
        await embed(client)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "search")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    async with client_of(build_debug_app(otel=True)) as client:
        await embed(client)
    default, named = (span.resource.attributes for span in spans.servers)
    assert default["service.name"] == "infinity_emb"
    assert (named["service.name"], named["deployment.environment.name"]) == ("search", "test")


async def test_errors_are_marked(spans: Spans) -> None:
    async with client_of(build_debug_app(debug_args("debug?fail_on=poison"), otel=True)) as client:
        await embed(client, "poison")
        await embed(client, [])
        await client.get("/no/such/path")
        await client.request("BREW", "/embeddings")
    failed, invalid, unknown, brewed = spans.servers
    assert (failed.status.status_code, (failed.attributes or {})["error.type"]) == (StatusCode.ERROR, "500")
    for span, status in ((invalid, 422), (unknown, 404), (brewed, 405)):
        assert span.status.status_code is StatusCode.UNSET
        assert (span.attributes or {})["http.response.status_code"] == status
    # No name that a client has made up.
    assert unknown.name == "HTTP"
    assert brewed.name == "HTTP /embeddings"
    assert (brewed.attributes or {})["http.request.method"] == "_OTHER"


async def test_probes_are_not_traced(spans: Spans) -> None:
    async with client_of(build_debug_app(otel=True)) as client:
        for path in ("/health", "/ready", "/ping", "/metrics", "/health/"):
            assert (await client.get(path)).status_code == 200
    assert not spans.all


async def test_cached_inputs_have_no_batch(spans: Spans) -> None:
    app = build_debug_app(debug_args(vector_memory_cache_mb=1), otel=True)
    async with client_of(app) as client:
        await embed(client)
        await embed(client)
    assert len(spans.named("batch")) == 1
    assert [span.name for span in spans.below(spans.servers[1])] == ["parse", "cache", "encode"]


async def test_without_the_option_nothing_is_traced(spans: Spans) -> None:
    app = build_debug_app()
    async with client_of(app) as client:
        await client.post("/embeddings", json={"input": "hello"}, headers={"traceparent": TRACEPARENT})
    assert not spans.all
    assert not any("tracing" in middleware.cls.__module__ for middleware in app.user_middleware)


async def test_a_provider_that_the_process_has_set_is_used_and_left_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exporter, theirs = InMemorySpanExporter(), TracerProvider()
    theirs.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: theirs)
    for _ in range(2):  # it outlives the first app
        async with client_of(build_debug_app(otel=True)) as client:
            with theirs.get_tracer("theirs").start_as_current_span("theirs") as outer:
                await embed(client)
        servers = [span for span in exporter.get_finished_spans() if span.kind is SpanKind.SERVER]
        exporter.clear()
        [server] = servers  # and none of FastAPI's own
        assert server.parent is not None
        assert server.parent.span_id == outer.get_span_context().span_id


async def test_their_processors_see_every_span_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans that are written when they have ended skip the start, which only our own provider may."""

    class Marking(SpanProcessor):
        def on_start(self, span: Span, parent_context: Context | None = None) -> None:
            span.set_attribute("theirs", True)

    exporter, theirs = InMemorySpanExporter(), TracerProvider()
    theirs.add_span_processor(Marking())
    theirs.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: theirs)
    async with client_of(build_debug_app(otel=True)) as client:
        await embed(client)
    found = exporter.get_finished_spans()
    assert {span.name for span in found} >= {"POST /embeddings", "batch", "forward", *STAGES}
    assert all((span.attributes or {}).get("theirs") for span in found)


async def test_all_spans_of_a_request_are_of_one_service_and_library(spans: Spans) -> None:
    async with client_of(build_debug_app(otel=True)) as client:
        await embed(client)
    assert {span.resource.attributes["service.name"] for span in spans.all} == {"infinity_emb"}
    assert {span.instrumentation_scope and span.instrumentation_scope.name for span in spans.all} == {
        "infinity_emb"
    }
    assert len({id_of(span) for span in spans.all}) == len(spans.all)


@pytest.mark.parametrize("package", ["opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter"])
def test_a_missing_package_names_the_extra(package: str) -> None:
    message = r"^--otel needs a package that is not installed \(.*\); .* pip install 'infinity-emb\[otel\]'$"
    with missing(package), pytest.raises(StartupError, match=message):
        build_debug_app(otel=True)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin", "names 'zipkin'; it can name otlp, console or none"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "is 'http/json'; it can be http/protobuf or grpc"),
    ],
)
def test_an_unknown_exporter_is_an_error(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(StartupError, match=f"^{variable} {message}$"):
        build_debug_app(otel=True)


def test_exporters_are_chosen_by_the_environment() -> None:
    def modules(**environ: str) -> list[str]:
        exporters = provider.make_exporters(environ)
        for exporter in exporters:
            exporter.shutdown()
        return [type(exporter).__module__ for exporter in exporters]

    [http] = modules()
    assert ".http." in http
    assert modules(
        OTEL_EXPORTER_OTLP_TRACES_PROTOCOL="http/protobuf", OTEL_EXPORTER_OTLP_PROTOCOL="grpc"
    ) == [http]
    [grpc] = modules(OTEL_EXPORTER_OTLP_PROTOCOL="grpc")
    assert ".grpc." in grpc
    assert modules(OTEL_TRACES_EXPORTER="none") == []
    assert len(modules(OTEL_TRACES_EXPORTER="otlp,console")) == 2


@pytest.fixture
def collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """The URL of a collector of OTLP over HTTP, and what it has received."""
    received = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path == "/v1/traces":
                received.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", received
        server.shutdown()
        thread.join()


async def test_spans_arrive_at_the_collector_that_the_environment_names(
    collector: tuple[str, list[ExportTraceServiceRequest]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, received = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    async with client_of(build_debug_app(otel=True)) as client:
        await embed(client)
    names = [
        span.name
        for request in received
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert sorted(names) == sorted(["POST /embeddings", *STAGES, "batch", "forward"])
