"""Measure what metrics, traces and Server-Timing cost, as ratios of the time of a request of 32 passages.

    python -m benchmarks.observability [--rounds 7] [--model bundled] [--spans]

One app per arm in this process, reached without a socket; the arms take turns. `bare` counts nothing: without
the middleware of the metrics and with histograms that drop their values. Spans are encoded for OTLP and then
dropped. The fake engine computes nothing, so its ratios show the whole cost. The last rows divide that by a
request to the bundled model, whose own ratios are noisier: it costs as much there, but for the spans of more
batches. Time is the processor's, of all threads, the exporter's too: other processes disturb it less than the
clock. With `--spans`, only the two ways of writing the span of a stage are compared. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace import Tracer as SDKTracer
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from benchmarks.rounds import Row, report
from benchmarks.texts import load_texts
from infinity_emb import AsyncEngineArray, EngineArgs
from infinity_emb.config.model_options import DEFAULT_MODEL
from infinity_emb.config.server_config import ServerConfig
from infinity_emb.scheduling import worker_pool
from infinity_emb.scheduling.histogram import Histogram, StageHistograms
from infinity_emb.scheduling.stages import Interval
from infinity_emb.server.app import build_app
from infinity_emb.server.middleware.http_metrics import HTTPMetricsMiddleware
from infinity_emb.server.server_app import ServerApp
from infinity_emb.server.tracing import provider
from infinity_emb.server.tracing.provider import HashedResource
from infinity_emb.server.tracing.spans import SpanWriter, TracedStages
from scripts.asgi_client import Lifespan, post_json

NUM_PASSAGES = 32
NUM_SPANS = 1000
# Model → options, and the number of requests of an arm in one round.
MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "fake": ({"model_name_or_path": "debug", "engine": "debugengine"}, 200),
    # Fixed, because each engine would measure its own batch size, and the arms would differ by it.
    "bundled": ({"model_name_or_path": DEFAULT_MODEL, "device": "cpu", "max_batch_tokens": 1024}, 2),
}
Headers = list[tuple[bytes, bytes]]
# Arm → what it is compared with, what it is called, and its goal with the bundled model.
COMPARISONS = {
    "metrics": ("bare", "metrics / none", "<= 1.02"),
    "traces": ("metrics", "metrics and traces / metrics", "<= 1.05"),
    "timing": ("metrics", "metrics and Server-Timing / metrics", ""),
}


class SilentHistogram(Histogram):
    """Count nothing."""

    def observe(self, value: float, number: int = 1) -> None:
        """Drop the value."""


class EncodingExporter(SpanExporter):
    """Encode spans as for a collector, and drop them."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        encode_spans(spans).SerializeToString()
        return SpanExportResult.SUCCESS


def make_bare_app(args: EngineArgs) -> ServerApp:
    """Build an app that counts nothing."""
    silent = [SilentHistogram((1.0,)) for _ in range(len(StageHistograms.__slots__))]
    with mock.patch.object(worker_pool, "StageHistograms", return_value=StageHistograms(*silent)):
        app = build_app(AsyncEngineArray.from_args([args]), ServerConfig())
    counting: object = HTTPMetricsMiddleware
    app.user_middleware = [each for each in app.user_middleware if each.cls is not counting]
    return app


def make_app(args: EngineArgs, **config: Any) -> ServerApp:
    """Build an app as the command line does."""
    return build_app(AsyncEngineArray.from_args([args]), ServerConfig(**config))


@dataclass
class Arm:
    """An app, the headers of its requests, and the time that they took in this round."""

    make: Callable[[EngineArgs], ServerApp]
    headers: Headers = field(default_factory=list)


ARMS = {
    "bare": Arm(make_bare_app),
    "metrics": Arm(make_app),
    "traces": Arm(lambda args: make_app(args, otel=True)),
    "timing": Arm(make_app, [(b"prefer", b"server-timing")]),
}


class Bench:
    """Hold the apps and run the rounds."""

    def __init__(self, models: Sequence[str]) -> None:
        self._loop = asyncio.new_event_loop()
        self._stack = contextlib.AsyncExitStack()
        _, self._passages = load_texts(num_short=1, num_passages=NUM_PASSAGES)
        self._models = models
        self._apps: dict[tuple[str, str], ServerApp] = {}
        with mock.patch.object(provider, "make_exporters", return_value=[EncodingExporter()]):
            self._loop.run_until_complete(self._start())
        self.rows = {
            f"{model}_{arm}": Row(f"{model} model: {text}", goal * (model == "bundled"))
            for model in models
            for arm, (_, text, goal) in COMPARISONS.items()
        }
        if len(models) > 1:
            self.rows |= {
                f"combined_{arm}": Row(f"1 + cost with fake / bundled model: {arm}", goal)
                for arm, (_, _, goal) in COMPARISONS.items()
            }

    async def _start(self) -> None:
        for model in self._models:
            for name, arm in ARMS.items():
                app = self._apps[model, name] = arm.make(EngineArgs(**MODELS[model][0]))
                await self._stack.enter_async_context(Lifespan(app))

    def close(self) -> None:
        """Stop the apps."""
        self._loop.run_until_complete(self._stack.aclose())
        self._loop.close()

    def measure(self) -> dict[str, float]:
        """Run one round and return the value of each row."""
        values: dict[str, float] = {}
        seconds: dict[str, dict[str, float]] = {}  # model → arm → seconds per request
        for model in self._models:
            seconds[model] = dict.fromkeys(ARMS, 0.0)
            number = MODELS[model][1]
            for name in _take_turns(list(ARMS), number):
                seconds[model][name] += self._loop.run_until_complete(self._time(model, name)) / number
            values |= {
                f"{model}_{arm}": seconds[model][arm] / seconds[model][base]
                for arm, (base, _, _) in COMPARISONS.items()
            }
        if len(self._models) > 1:
            fake, bundled = seconds["fake"], seconds["bundled"]
            values |= {
                f"combined_{arm}": 1 + (fake[arm] - fake[base]) / bundled[base]
                for arm, (base, _, _) in COMPARISONS.items()
            }
        return values

    async def _time(self, model: str, arm: str) -> float:
        body = {"input": self._passages, "encoding_format": "base64"}
        started_s = time.process_time()
        status, _ = await post_json(self._apps[model, arm], "/embeddings", body, headers=ARMS[arm].headers)
        assert status == 200
        return time.process_time() - started_s


class SpanBench:
    """Write spans of stages in both ways, to a processor that drops them."""

    def __init__(self) -> None:
        provider_of_spans = TracerProvider(resource=HashedResource(Resource.create({})))
        provider_of_spans.add_span_processor(SpanProcessor())
        tracer = provider_of_spans.get_tracer("benchmark")
        assert isinstance(tracer, SDKTracer)
        self._parent = tracer.start_span("request")
        self._writers = {"sdk": SpanWriter(tracer), "finished": SpanWriter(tracer, tracer.span_processor)}
        self.rows = {
            "sdk": Row("us per span that the SDK starts and ends", ""),
            "finished": Row("us per span that is written finished", ""),
            "ratio": Row("written finished / started and ended", ""),
        }

    def close(self) -> None:
        """Do nothing: there is no process to stop."""

    def measure(self) -> dict[str, float]:
        """Run one round and return the value of each row."""
        us = dict.fromkeys(self._writers, 0.0)
        for name in _take_turns(list(self._writers), 10):
            us[name] += self._time_us(self._writers[name]) / 10
        return us | {"ratio": us["finished"] / us["sdk"]}

    def _time_us(self, writer: SpanWriter) -> float:
        """Return the processor time per span of a request of many stages."""
        stages = TracedStages(self._parent, {})
        stages.intervals.extend(Interval("queue", 0.0, 1.0) for _ in range(NUM_SPANS))
        started_s = time.process_time()
        writer.write(stages)
        return 1e6 * (time.process_time() - started_s) / NUM_SPANS


def _take_turns(names: list[str], num_turns: int) -> Iterator[str]:
    """Yield each name once per turn, another one first each time."""
    for turn in range(num_turns):
        first = turn % len(names)
        yield from names[first:] + names[:first]


def main() -> None:
    """Run the rounds and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model", choices=list(MODELS), action="append")
    parser.add_argument("--spans", action="store_true", help="compare two ways to write a span, no apps")
    args = parser.parse_args()
    if args.spans:
        report(SpanBench(), args.rounds, about=f"{NUM_SPANS} spans per request")
        return
    report(Bench(args.model or list(MODELS)), args.rounds, about=f"{NUM_PASSAGES} passages per request")


if __name__ == "__main__":
    main()
