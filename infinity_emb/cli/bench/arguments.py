"""The arguments of `bench`."""

from __future__ import annotations

import argparse
import math
from typing import Any

from infinity_emb.cli.remote_server import add_server_arguments

DIALECT_NAMES = ("openai", "tei", "cohere")
DEFAULT_SECONDS = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the servers, the workload, the load and the outputs."""
    add_server_arguments(parser)
    _add_servers(parser.add_argument_group("Servers").add_argument)
    _add_workload(parser.add_argument_group("Workload").add_argument)
    _add_load(parser)
    add = parser.add_argument_group("Outputs").add_argument
    add("--json", metavar="FILE", help="write all figures as JSON; - writes them to standard output only")
    add("--plot", metavar="FILE", help="plot latency and throughput by level, .svg or .html")


def _add_servers(add: Any) -> None:
    add(
        "--dialect",
        metavar="NAME",
        choices=DIALECT_NAMES,
        default="openai",
        help="API of the server: openai, tei, cohere [openai]",
    )
    add("--model", metavar="NAME", help="model to request [the first that the server lists]")
    add("--against", metavar="URL", help="second server, measured in turn with the first")
    add("--against-dialect", metavar="NAME", choices=DIALECT_NAMES, help="its API [that of the first]")
    add("--against-model", metavar="NAME", help="its model [the first that it lists]")


def _add_workload(add: Any) -> None:
    add(
        "--task", metavar="NAME", choices=("embed", "rerank"), default="embed", help="embed or rerank [embed]"
    )
    add(
        "--items",
        metavar="N",
        type=_parse_count,
        default=1,
        help="texts per request, or documents per query [1]",
    )
    add("--chars", metavar="N[-N]", type=_parse_range, help="length of each text [that of its line]")
    add(
        "--texts",
        metavar="FILE",
        default="",
        help="UTF-8 file with one text per line [the sample texts of the package]",
    )
    add("--seed", metavar="N", type=int, default=0, help="seed of texts, lengths and arrivals [0]")


def _add_load(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("Load")
    kinds = group.add_mutually_exclusive_group()
    kinds.add_argument(
        "--concurrency",
        metavar="N[,N]",
        type=_parse_counts,
        help="clients that wait for each response [1,4,16]",
    )
    kinds.add_argument(
        "--rate",
        metavar="N[,N]",
        type=_parse_rates,
        help="requests per second, sent without waiting for responses (Poisson arrivals)",
    )
    spans = group.add_mutually_exclusive_group()
    spans.add_argument("--duration", metavar="SEC", type=_parse_positive, help="time per level [10]")
    spans.add_argument(
        "--requests", metavar="N", type=_parse_count, help="requests per level, instead of a time"
    )
    group.add_argument(
        "--warmup",
        metavar="SEC",
        type=_parse_seconds,
        default=1.0,
        help="load before each level, not counted [1]",
    )
    group.add_argument(
        "--rounds",
        metavar="N",
        type=_parse_count,
        help="measurements of each server at each level [1, or 3 with --against]",
    )
    group.add_argument(
        "--timeout",
        metavar="SEC",
        type=_parse_positive,
        default=60.0,
        help="maximum wait for a response [60]",
    )


def _parse_count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of 1 or more, got {text!r}")
    return int(text)


def _parse_counts(text: str) -> list[int]:
    return list(dict.fromkeys(map(_parse_count, text.split(","))))


def _parse_range(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    first, last = _parse_count(low), _parse_count(high or low)
    if first > last:
        raise argparse.ArgumentTypeError(f"must begin with the smaller length, got {text!r}")
    return first, last


def _parse_seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of 0 or more, got {text!r}")
    return number


def _parse_positive(text: str) -> float:
    number = _parse_seconds(text)
    if not number:
        raise argparse.ArgumentTypeError("must be more than 0")
    return number


def _parse_rates(text: str) -> list[float]:
    return list(dict.fromkeys(map(_parse_positive, text.split(","))))
