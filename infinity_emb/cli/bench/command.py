"""Run `bench`: measure each server in turn, in each round at each level."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infinity_emb._version import __version__
from infinity_emb.cli.bench.arguments import DEFAULT_SECONDS, add_arguments
from infinity_emb.cli.remote_server import RemoteServer
from infinity_emb.cli.tool import Tool, print_line
from infinity_emb.errors import StartupError, require_extra

if TYPE_CHECKING:
    from infinity_emb.cli.bench.load import Result, Span
    from infinity_emb.cli.bench.report import Turn
    from infinity_emb.cli.bench.summary import Level, Summary
    from infinity_emb.cli.bench.workload import Endpoint, Workload

# Rounds of a comparison; their spread separates noise from a difference.
_NUM_ROUNDS_OF_TWO = 3


def run(options: argparse.Namespace) -> int:
    """Load the servers and report; return 1 if no request succeeded. Raises StartupError."""
    with require_extra("bench", "server"):
        from infinity_emb.cli.bench.plot import check_path, write_plot
        from infinity_emb.cli.bench.report import print_report, to_json
    if options.plot:
        check_path(options.plot)
    endpoints, workload = _find_endpoints(options), _describe_workload(options)
    urls = [endpoint.server.url for endpoint in endpoints]
    if len(set(urls)) < len(urls):
        raise StartupError("--against is the same URL; give another one")
    prints_table = options.json != "-"
    if prints_table:
        print_line(_describe(endpoints, workload, options))
    turns = measure(endpoints, workload, options)
    if prints_table:
        print_report(turns, urls)
    report = {
        "version": __version__,
        "workload": workload.to_dict(),
        "seed": options.seed,
        "servers": [
            {"url": each.server.url, "dialect": each.dialect, "model": each.model} for each in endpoints
        ],
        "turns": to_json(turns),
    }
    try:
        if options.json:
            _write_json(options.json, report)
        if options.plot:
            write_plot(options.plot, turns, urls, str(workload))
    except OSError as exc:
        raise StartupError(f"cannot write {exc.filename!r}: {exc.strerror}") from exc
    return 0 if any(turn.summary.num_ok for turn in turns) else 1


def measure(endpoints: Sequence[Endpoint], workload: Workload, options: argparse.Namespace) -> list[Turn]:
    """Measure all turns; the order of the servers alternates from round to round."""
    from infinity_emb.cli.bench.report import Turn
    from infinity_emb.cli.bench.summary import Level
    from infinity_emb.cli.bench.workload import build_requests

    levels = [Level(per_s=rate) for rate in options.rate or ()] or [
        Level(num_clients=number) for number in options.concurrency or (1, 4, 16)
    ]
    requests = {endpoint: build_requests(workload, endpoint, options.requests) for endpoint in endpoints}
    turns = []
    for level in levels:
        for number in range(options.rounds or (1 if len(endpoints) == 1 else _NUM_ROUNDS_OF_TWO)):
            for endpoint in endpoints if number % 2 == 0 else endpoints[::-1]:
                summary = _run_turn(requests[endpoint], endpoint, level, workload, options)
                turns.append(Turn(endpoint.server.url, number, summary))
    return turns


def _run_turn(
    requests: Sequence[bytes],
    endpoint: Endpoint,
    level: Level,
    workload: Workload,
    options: argparse.Namespace,
) -> Summary:
    from infinity_emb.cli.bench.load import Span
    from infinity_emb.cli.bench.summary import summarize

    if options.warmup > 0:
        _send(requests, endpoint, level, Span(seconds=options.warmup), options)
    if options.requests:
        span = Span(num_requests=options.requests)
    else:
        span = Span(seconds=options.duration or DEFAULT_SECONDS)
    results = _send(requests, endpoint, level, span, options)
    return summarize(results, level, num_items=workload.num_items, seconds=span.seconds)


def _send(
    requests: Sequence[bytes], endpoint: Endpoint, level: Level, span: Span, options: argparse.Namespace
) -> list[Result]:
    from infinity_emb.cli.bench.connections import Target
    from infinity_emb.cli.bench.load import iterate_poisson, run_closed, run_open

    target = Target.from_url(endpoint.server.url)
    if level.per_s is None:
        load = run_closed(
            requests, target, num_clients=level.num_clients or 1, span=span, timeout_s=options.timeout
        )
    else:
        arrivals = iterate_poisson(level.per_s, options.seed)
        load = run_open(requests, target, arrivals=arrivals, span=span, timeout_s=options.timeout)
    return _run(load)


def _run(coroutine: Coroutine[Any, Any, list[Result]]) -> list[Result]:
    """Run on uvloop where it is installed: the load generator then costs half."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(coroutine)
    return uvloop.run(coroutine)


def _find_endpoints(options: argparse.Namespace) -> list[Endpoint]:
    first = _find_endpoint(options.url, options.dialect, options.model, options)
    if not options.against:
        return [first]
    dialect = options.against_dialect or options.dialect
    return [first, _find_endpoint(options.against, dialect, options.against_model, options)]


def _find_endpoint(url: str, dialect: str, model: str | None, options: argparse.Namespace) -> Endpoint:
    """Find the model to request. Raises StartupError if the server cannot be reached."""
    from infinity_emb.cli.bench.dialects import DIALECTS
    from infinity_emb.cli.bench.workload import Endpoint

    server = RemoteServer(url, options.api_key, timeout_s=options.timeout)
    if not DIALECTS[dialect].needs_model:
        server.get("/health")  # fail before any load if no server responds
        return Endpoint(server, dialect, model or "")
    if model is None:
        listed = server.get_json("/models" if server.url.endswith("/v1") else "/v1/models")
        try:
            model = str(listed["data"][0]["id"])
        except (LookupError, TypeError) as exc:
            raise StartupError(f"{server.url} lists no models; name one with --model") from exc
    return Endpoint(server, dialect, model)


def _describe_workload(options: argparse.Namespace) -> Workload:
    from infinity_emb.cli.bench.workload import Workload

    low, high = options.chars or (None, None)
    return Workload(
        task=options.task,
        num_items=options.items,
        min_chars=low,
        max_chars=high,
        texts_file=options.texts,
        seed=options.seed,
    )


def _describe(endpoints: Sequence[Endpoint], workload: Workload, options: argparse.Namespace) -> str:
    """Describe what is measured, in two lines."""
    servers = " against ".join(
        f"{each.server.url} ({each.dialect}{each.model and ', '}{each.model})" for each in endpoints
    )
    span = (
        f"{options.requests} requests" if options.requests else f"{options.duration or DEFAULT_SECONDS:g} s"
    )
    return f"{servers}\n{workload}; {span} per level after {options.warmup:g} s of warm-up\n"


def _write_json(path: str, report: dict[str, Any]) -> None:
    if path == "-":
        print_line(json.dumps(report))
    else:
        Path(path).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


TOOL = Tool(
    summary="Measure a server under load.",
    details="Speaks the APIs of OpenAI, text-embeddings-inference and Cohere. Latency counts from when a"
    " request was due. Two servers are measured in turn at each level.",
    add_arguments=add_arguments,
    run=run,
    usage="infinity_emb bench URL [OPTIONS]",
)
