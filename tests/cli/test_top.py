"""`infinity_emb top`: against a server of this process, and against addresses that are none."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from rich.console import RenderableType

from infinity_emb import cli
from infinity_emb.cli.remote_server import RemoteServer
from infinity_emb.cli.top import command
from infinity_emb.cli.top.figures import derive_figures
from infinity_emb.cli.top.reading import Snapshot, compare_readings, read_server
from infinity_emb.cli.top.samples import Samples, Window
from infinity_emb.cli.top.view import View, draw_sparkline, format_number, format_seconds
from infinity_emb.errors import StartupError
from tests.support.server_on_a_thread import ServerOnAThread, StartHere
from tests.support.tiny_server import build_debug_app


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_ONCE_S", 0.05)
    monkeypatch.delenv("INFINITY_API_KEY", raising=False)


def url_of(server: ServerOnAThread) -> str:
    return f"http://127.0.0.1:{server.address[1]}"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    exit_code = cli.main(["top", *arguments])
    return exit_code, *capsys.readouterr()


def test_figures_between_two_readings_are_those_of_the_traffic(start_here: StartHere) -> None:
    server = start_here("debug")
    first = read_server(RemoteServer(url_of(server)))
    for _ in range(4):
        httpx.post(f"{url_of(server)}/embeddings", json={"input": ["four", "four!"]})
    httpx.post(f"{url_of(server)}/embeddings", json={"input": 7})
    httpx.get(f"{url_of(server)}/health")
    last = read_server(RemoteServer(url_of(server)))
    snapshot = compare_readings(url_of(server), first, last)
    now = snapshot.now
    counted = {
        name: round(getattr(now, name) * now.seconds)
        for name in ("requests_per_s", "errors_per_s", "inputs_per_s", "tokens_per_s")
    }
    assert counted == {"requests_per_s": 5, "errors_per_s": 1, "inputs_per_s": 8, "tokens_per_s": 36}
    assert now.batch_items is not None
    assert 1 <= now.batch_items <= 2
    assert now.batch_fill == pytest.approx(now.batch_items * 4.5 / 16_384)
    assert now.p50_s is not None
    assert now.p99_s is not None
    assert now.p50_s <= now.p99_s
    assert now.cache_hit_rate is None
    assert snapshot.queue_items == snapshot.pending_requests == 0
    assert [(model.name, model.kind, model.is_loaded) for model in snapshot.models] == [
        ("debug", "embedder", True)
    ]
    assert snapshot.since_start.seconds > 0


def test_once_prints_a_table_and_json_the_same_for_machines(
    capsys: pytest.CaptureFixture[str], start_here: StartHere
) -> None:
    server = start_here("debug")
    httpx.post(f"{url_of(server)}/embeddings", json={"input": "four"})
    exit_code, out, err = run(capsys, f"127.0.0.1:{server.address[1]}", "--once")
    assert (exit_code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith(f"{url_of(server)}   0 inputs queued, 0 requests pending, ")
    labels = ["requests/s", "errors/s", "inputs/s", "tokens/s", "latency p50", "latency p99", "batch fill"]
    assert [label for label in labels if not any(line.startswith(label) for line in lines)] == []
    assert any(line.split()[:2] == ["debug", "embedder"] for line in lines)

    exit_code, out, _ = run(capsys, url_of(server), "--once", "--json")
    snapshot = json.loads(out)
    assert exit_code == 0
    assert snapshot["since_start"]["requests_per_s"] > 0
    assert snapshot["now"]["requests_per_s"] == 0
    assert [model["name"] for model in snapshot["models"]] == ["debug"]


def test_a_key_is_asked_for_and_taken_from_flag_or_environment(
    capsys: pytest.CaptureFixture[str], start_here: StartHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_here(app=build_debug_app(api_key=("secret",), metrics="key"))
    exit_code, out, err = run(capsys, url_of(server), "--once")
    assert (exit_code, out) == (1, "")
    assert err == (
        f"error: {url_of(server)} asks for an API key (401); give it with --api-key or INFINITY_API_KEY\n"
    )
    exit_code, _, err = run(capsys, url_of(server), "--once", "--api-key", "wrong")
    assert (exit_code, err.count("\n")) == (1, 1)
    assert "refuses this API key (401)" in err
    assert run(capsys, url_of(server), "--once", "--api-key", "secret")[0] == 0
    monkeypatch.setenv("INFINITY_API_KEY", "secret")
    assert run(capsys, url_of(server), "--once")[0] == 0


def test_models_may_lie_below_a_prefix_and_metrics_do_not(
    capsys: pytest.CaptureFixture[str], start_here: StartHere
) -> None:
    server = start_here(app=build_debug_app(url_prefix="/api"))
    assert run(capsys, f"{url_of(server)}/api/", "--once")[0] == 0


def test_a_server_without_metrics_says_which_option_it_lacks(
    capsys: pytest.CaptureFixture[str], start_here: StartHere
) -> None:
    server = start_here(app=build_debug_app(metrics="off"))
    exit_code, _, err = run(capsys, url_of(server), "--once")
    assert (exit_code, err.count("\n")) == (1, 1)
    assert "--metrics open" in err


PAGES = {"/page": b"<html>", "/list/models": b"[1]"}


class _OtherServer(BaseHTTPRequestHandler):
    """A web server that has nothing to do with models."""

    def do_GET(self) -> None:
        body = next((text for path, text in PAGES.items() if self.path.startswith(path)), None)
        self.send_response(404 if body is None else 200)
        self.send_header("content-length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def other_url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _OtherServer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_addresses_of_no_server_of_models_are_told_in_one_line(
    capsys: pytest.CaptureFixture[str], other_url: str
) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{bound.getsockname()[1]}"
        for url, words in {
            closed: "cannot reach",
            f"{other_url}/nothing": "returned 404",
            f"{other_url}/page": "is not JSON",
            f"{other_url}/list": "lists no models",
            "ftp://host": "is not the URL of a server",
            "http://": "is not the URL of a server",
            "http://host:x": "is not the URL of a server",
        }.items():
            exit_code, out, err = run(capsys, url, "--once")
            assert (exit_code, out, err.count("\n")) == (1, "", 1), url
            assert err.startswith("error: ")
            assert words in err


@pytest.mark.parametrize("interval", ["0", "x", "-1"])
def test_an_interval_is_a_number_of_seconds(capsys: pytest.CaptureFixture[str], interval: str) -> None:
    with pytest.raises(SystemExit):
        cli.main(["top", "localhost", f"--interval={interval}"])
    assert "--interval" in capsys.readouterr().err


def test_the_live_view_goes_on_when_the_server_is_away_and_ends_with_ctrl_c(
    start_here: StartHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_here("debug")
    drawn: list[str] = []
    draw = View.draw

    def record(view: View, snapshot: Snapshot, problem: str = "") -> RenderableType:
        drawn.append(problem)
        return draw(view, snapshot, problem=problem)

    monkeypatch.setattr(View, "draw", record)
    readings = iter([read_server(RemoteServer(url_of(server))) for _ in range(2)])

    def read(_: RemoteServer) -> Any:
        if len(drawn) == 1:
            raise StartupError("it is away.")
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return next(readings)

    monkeypatch.setattr("infinity_emb.cli.top.reading.read_server", read)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert cli.main(["top", url_of(server), "--interval", "0.1"]) == 0
    assert drawn == ["", "it is away. Trying again…", ""]


def test_a_counter_that_fell_was_restarted_and_quantiles_are_those_of_prometheus() -> None:
    name = "http_request_duration_seconds"

    def scrape(*counts: int, requests: int) -> Samples:
        labels = 'handler="/embeddings",method="POST"'
        buckets = zip(("0.1", "0.2", "+Inf"), counts, strict=True)
        lines = [f'{name}_bucket{{{labels},le="{bound}"}} {count}' for bound, count in buckets]
        lines.append(f'http_requests_total{{{labels},status="2xx"}} {requests}')
        return Samples("\n".join(lines) + "\n")

    figures = derive_figures(Window(scrape(10, 10, 10, requests=10), scrape(10, 20, 20, requests=20), 2.0))
    assert figures.requests_per_s == 5
    assert figures.p50_s == pytest.approx(0.15)
    assert figures.p99_s == pytest.approx(0.199)
    restarted = derive_figures(Window(scrape(10, 10, 10, requests=10), scrape(4, 4, 4, requests=4), 1.0))
    assert restarted.requests_per_s == 4
    assert restarted.p50_s == pytest.approx(0.05)
    beyond = derive_figures(Window(Samples(), scrape(0, 0, 3, requests=3), 1.0))
    assert beyond.p99_s == pytest.approx(0.2)


def test_numbers_are_short() -> None:
    assert [format_number(each) for each in (0, 0.1234, 12.345, 123456.7)] == [
        "0",
        "0.123",
        "12.3",
        "123,457",
    ]
    assert [format_seconds(each) for each in (0.00123, 0.5, 2.345)] == ["1.23 ms", "500 ms", "2.35 s"]
    assert draw_sparkline([0, 0]) == "▁▁"
    assert draw_sparkline([0, 1, 2]) == "▁▅█"
