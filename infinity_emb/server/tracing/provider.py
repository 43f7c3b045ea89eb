"""Configure OpenTelemetry's SDK by its standard variables, `OTEL_*`.

The SDK itself reads most of them: sampler, resource, limits, span queue and OTLP. Only the choice of an
exporter is left to users of the SDK.
Source: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, TraceState
from opentelemetry.util.types import Attributes

from infinity_emb._version import __version__
from infinity_emb.errors import StartupError

SERVICE_NAME = "infinity_emb"
_PROTOCOLS = {
    "http/protobuf": "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "grpc": "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
}


def open_provider() -> TracerProvider:
    """Return the provider that the process has set, else a new one that exports as the variables say.

    Raises StartupError for an exporter or protocol that does not exist.
    """
    current = trace.get_tracer_provider()
    if isinstance(current, TracerProvider):
        return current
    exporters = make_exporters(os.environ)
    named = Resource.create({"service.name": SERVICE_NAME, "service.version": __version__})
    resource = named.merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=HashedResource(resource))
    provider.sampler = LinkedSampler(provider.sampler)
    for exporter in exporters:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


class HashedResource(Resource):
    """Compute the hash once. The encoder asks for it with every span, and the SDK's writes JSON each time."""

    def __init__(self, resource: Resource) -> None:
        super().__init__(resource.attributes, resource.schema_url)
        self._hash = super().__hash__()

    def __hash__(self) -> int:
        return self._hash


class LinkedSampler(Sampler):
    """Record each span that starts a trace with links: a batch, which links to recorded requests.

    Otherwise a batch would be sampled independently of its requests.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """Decide about one span."""
        if links and not trace.get_current_span(parent_context).get_span_context().is_valid:
            return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes)
        return self._sampler.should_sample(
            parent_context, trace_id, name, kind, attributes, links, trace_state
        )

    def get_description(self) -> str:
        """Describe the sampler in a few words."""
        return f"Linked({self._sampler.get_description()})"


def make_exporters(environ: Mapping[str, str]) -> list[SpanExporter]:
    """Make the exporters that `OTEL_TRACES_EXPORTER` lists. Raises StartupError for an unknown one."""
    makers: dict[str, Callable[[], SpanExporter]] = {
        "otlp": lambda: _make_otlp_exporter(environ),
        "console": ConsoleSpanExporter,
    }
    names = [name.strip() for name in (environ.get("OTEL_TRACES_EXPORTER") or "otlp").split(",")]
    names = [] if names == ["none"] else names
    for name in names:
        if name not in makers:
            raise StartupError(f"OTEL_TRACES_EXPORTER names {name!r}; it can name otlp, console or none")
    return [makers[name]() for name in names]


def _make_otlp_exporter(environ: Mapping[str, str]) -> SpanExporter:
    variables = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    variable = next((each for each in variables if environ.get(each)), variables[-1])
    protocol = environ.get(variable) or "http/protobuf"
    if protocol not in _PROTOCOLS:
        raise StartupError(f"{variable} is {protocol!r}; it can be http/protobuf or grpc")
    exporter: SpanExporter = import_module(_PROTOCOLS[protocol]).OTLPSpanExporter()
    return exporter
