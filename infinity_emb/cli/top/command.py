"""The arguments of `top`, and its loop: scrape, compute figures, draw."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections import deque
from collections.abc import Iterator

from infinity_emb.cli.remote_server import RemoteServer, add_server_arguments
from infinity_emb.cli.tool import Tool, print_line
from infinity_emb.errors import StartupError, require_extra

# Time between the two readings of `--once`.
_ONCE_S = 1.0
# Time span of the live figures.
_WINDOW_S = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the URL and how to print."""
    add_server_arguments(parser)
    parser.add_argument("--once", action="store_true", help="print one snapshot and exit")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each snapshot")
    parser.add_argument(
        "--interval", metavar="SEC", type=_parse_interval, default=2.0, help="time between snapshots [2]"
    )


def _parse_interval(text: str) -> float:
    seconds = float(text)
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"must be from 0.1 to 3600 seconds, got {text}")
    return seconds


def run(options: argparse.Namespace) -> int:
    """Show the server until Ctrl-C. Raises StartupError if the first request fails."""
    server = RemoteServer(options.url, options.api_key)
    with require_extra("top", "server"), contextlib.suppress(KeyboardInterrupt):
        if options.json:
            _print_json(server, options)
        elif options.once or not sys.stdout.isatty():
            _print_once(server)
        else:
            _show_live(server, options.interval)
    return 0


def _print_json(server: RemoteServer, options: argparse.Namespace) -> None:
    from infinity_emb.cli.top.reading import compare_readings, read_server

    first = read_server(server)
    while True:
        time.sleep(_ONCE_S if options.once else options.interval)
        last = read_server(server)
        print_line(json.dumps(compare_readings(server.url, first, last).to_dict()))
        if options.once:
            return
        first = last


def _print_once(server: RemoteServer) -> None:
    from rich.console import Console

    from infinity_emb.cli.top.reading import compare_readings, read_server
    from infinity_emb.cli.top.view import View

    first = read_server(server)
    time.sleep(_ONCE_S)
    snapshot = compare_readings(server.url, first, read_server(server))
    width = None if sys.stdout.isatty() else 160  # files and pipes have no width
    Console(width=width, highlight=False).print(View().draw(snapshot))


def _show_live(server: RemoteServer, interval_s: float) -> None:
    from rich.console import Console
    from rich.live import Live

    from infinity_emb.cli.top.reading import compare_readings, read_server
    from infinity_emb.cli.top.view import View

    view = View()
    readings = deque([read_server(server)], maxlen=1 + max(1, round(_WINDOW_S / interval_s)))
    snapshot = compare_readings(server.url, readings[0], readings[0])
    with Live(view.draw(snapshot), console=Console(), screen=True, auto_refresh=False) as live:
        for _ in _tick(interval_s):
            problem = ""
            try:
                readings.append(read_server(server))
                snapshot = compare_readings(server.url, readings[0], readings[-1])
            except StartupError as exc:  # the server may come back
                problem = f"{exc} Trying again…"
            live.update(view.draw(snapshot, problem=problem), refresh=True)


def _tick(interval_s: float) -> Iterator[None]:
    while True:
        time.sleep(interval_s)
        yield


TOOL = Tool(
    summary="Show what a running server is doing.",
    details="Reads /models and /metrics of an infinity_emb server. Ends with Ctrl-C; without a terminal it"
    " prints one snapshot.",
    add_arguments=add_arguments,
    run=run,
    usage="infinity_emb top URL [OPTIONS]",
)
