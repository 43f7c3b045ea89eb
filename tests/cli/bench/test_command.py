"""`infinity_emb bench`: against servers of this process, and its workloads, outputs and errors."""

from __future__ import annotations

import json
import socket
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import httpx
import pytest

from infinity_emb import cli
from infinity_emb.cli.bench import command
from infinity_emb.cli.bench.dialects import DIALECTS
from infinity_emb.cli.bench.plot import draw_plot, find_round_maximum
from infinity_emb.cli.bench.report import Turn, find_ratios, print_report
from infinity_emb.cli.bench.summary import Level, Summary
from infinity_emb.cli.bench.workload import Endpoint, Workload, build_requests
from infinity_emb.cli.remote_server import RemoteServer
from tests.support.server_on_a_thread import ServerOnAThread, StartHere
from tests.support.tiny_server import build_debug_app, debug_args

QUICK = ("--warmup", "0", "--requests", "6", "--concurrency", "2")


def url_of(server: ServerOnAThread) -> str:
    return f"http://127.0.0.1:{server.address[1]}"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    exit_code = cli.main(["bench", *arguments])
    return exit_code, *capsys.readouterr()


def count_requests(server: ServerOnAThread) -> dict[str, float]:
    """Successful requests by route, as the server counted them."""
    lines = httpx.get(f"{url_of(server)}/metrics").text.splitlines()
    words = ("http_requests_total{", 'method="POST"', 'status="2xx"')
    counts = [line for line in lines if all(word in line for word in words)]
    return {line.split('handler="')[1].split('"')[0]: float(line.split()[-1]) for line in counts}


@pytest.fixture
def server(start_here: StartHere) -> ServerOnAThread:
    return start_here(app=build_debug_app(debug_args("debug?kind=embedder")))


@pytest.mark.parametrize("task", ["embed", "rerank"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_each_dialect_is_what_the_server_speaks(
    dialect: str, task: str, server: ServerOnAThread, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (url_of(server), "--dialect", dialect, "--task", task, "--items", "3", "--chars", "10")
    exit_code, out, err = run(capsys, *arguments, *QUICK, "--json", "-")
    (turn,) = json.loads(out)["turns"]
    assert (exit_code, err) == (0, "")
    assert (turn["requests"], turn["errors"], turn["concurrency"]) == (6, {}, 2)
    assert turn["inputs_per_s"] == pytest.approx(3 * turn["requests_per_s"])
    path = DIALECTS[dialect].embed_path if task == "embed" else DIALECTS[dialect].rerank_path
    assert sum(count_requests(server).values()) == count_requests(server)[path] == 6
    if (dialect, task) in (("openai", "embed"), ("tei", "embed"), ("cohere", "embed")):
        assert turn["tokens_per_s"] == pytest.approx(30 * turn["requests_per_s"], rel=0.01)


def test_the_table_has_a_row_for_each_level_and_files_are_written(
    server: ServerOnAThread, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    json_path, plot_path, page_path = (tmp_path / name for name in ("bench.json", "plot.svg", "plot.html"))
    arguments = ("--warmup", "0", "--duration", "0.2", "--concurrency", "1,2", "--json", str(json_path))
    exit_code, out, _ = run(capsys, url_of(server), *arguments, "--plot", str(plot_path))
    lines = out.splitlines()
    assert exit_code == 0
    assert lines[0] == f"{url_of(server)} (openai, debug)"
    assert lines[1].startswith(
        "embed: 1 text of any length per request, from the sample texts; 0.2 s per level"
    )
    assert lines[3].split()[:3] == ["clients", "requests/s", "inputs/s"]
    assert [line.split()[0] for line in lines[4:]] == ["1", "2"]
    assert all(line.endswith("  0") for line in lines[4:])  # no errors
    report = json.loads(json_path.read_text())
    assert [turn["concurrency"] for turn in report["turns"]] == [1, 2]
    assert report["servers"] == [{"url": url_of(server), "dialect": "openai", "model": "debug"}]
    assert ElementTree.parse(plot_path).getroot().tag.endswith("svg")
    rate = ("--warmup", "0.05", "--duration", "0.2", "--rate", "50", "--plot", str(page_path))
    exit_code, out, _ = run(capsys, url_of(server), *rate)
    assert exit_code == 0
    assert "50/s" in out
    assert "requests/s offered" in page_path.read_text()


def test_two_servers_take_turns_in_changing_order(
    start_here: StartHere, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = [url_of(start_here("first")), url_of(start_here("second?delay_s=0.02"))]
    turns: list[str] = []
    run_turn = command._run_turn
    monkeypatch.setattr(
        command,
        "_run_turn",
        lambda requests, endpoint, *rest: (
            turns.append(endpoint.server.url) or run_turn(requests, endpoint, *rest)  # type: ignore[func-returns-value]
        ),
    )
    exit_code, out, _ = run(capsys, urls[0], "--against", urls[1], *QUICK, "--rounds", "3")
    assert exit_code == 0
    assert turns == [urls[0], urls[1], urls[1], urls[0], urls[0], urls[1]]
    assert f"{urls[1]} relative to {urls[0]}, median of the rounds" in out
    ratio = float(out.splitlines()[-1].split()[1])
    assert ratio < 0.9  # it waits for 20 ms


def test_errors_are_counted_by_status_and_a_load_without_success_is_exit_code_1(
    start_here: StartHere, capsys: pytest.CaptureFixture[str]
) -> None:
    server = start_here(app=build_debug_app(debug_args("debug", max_request_chars=5)))
    exit_code, out, _ = run(capsys, url_of(server), "--chars", "50", *QUICK)
    assert exit_code == 1
    assert out.splitlines()[-1].endswith("6 × 400")


def test_a_key_opens_the_server(start_here: StartHere, capsys: pytest.CaptureFixture[str]) -> None:
    server = start_here(app=build_debug_app(api_key=("secret",)))
    exit_code, _, err = run(capsys, url_of(server), *QUICK)
    assert (exit_code, err.count("\n")) == (1, 1)
    assert "asks for an API key (401)" in err
    assert run(capsys, url_of(server), *QUICK, "--api-key", "secret")[0] == 0


def test_what_cannot_be_measured_is_told_in_one_line(
    server: ServerOnAThread, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        for arguments, words in (
            ((f"http://127.0.0.1:{bound.getsockname()[1]}",), "cannot reach"),
            ((f"http://127.0.0.1:{bound.getsockname()[1]}", "--dialect", "tei"), "cannot reach"),
            ((f"{url_of(server)}/nothing",), "returned 404"),
            ((url_of(server), "--texts", str(tmp_path / "absent")), "cannot be read"),
            ((url_of(server), "--texts", str(tmp_path / "empty.txt")), "has no texts"),
            ((url_of(server), "--plot", "plot.png"), "must end in .svg or .html"),
            ((url_of(server), "--against", f"{url_of(server)}/"), "is the same URL"),
            ((url_of(server), "--json", str(tmp_path / "no" / "file")), "cannot write"),
        ):
            exit_code, _, err = run(capsys, *arguments, *QUICK)
            assert (exit_code, err.count("\n")) == (1, 1), err
            assert words in err


@pytest.mark.parametrize(
    "option",
    ["--concurrency=0", "--concurrency=1,x", "--rate=-1", "--rate=nan", "--chars=9-3", "--duration=0",
     "--requests=1.5", "--task=chat", "--dialect=x", "--warmup=-1"],
)  # fmt: skip
def test_a_wrong_value_is_a_usage_error_that_names_the_option(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["bench", "localhost", option])
    assert exit_.value.code == 2
    assert option.partition("=")[0] in capsys.readouterr().err


def endpoint(url: str = "http://host") -> Endpoint:
    return Endpoint(RemoteServer(url), "openai", "m")


def read_texts(request: bytes) -> list[str]:
    texts: list[str] = json.loads(request.partition(b"\r\n\r\n")[2])["input"]
    return texts


def test_texts_have_the_asked_lengths_and_depend_on_the_seed_alone() -> None:
    workload = Workload(num_items=4, min_chars=5, max_chars=20, seed=1)
    requests = build_requests(workload, endpoint(), 30)
    lengths = [len(text) for request in requests for text in read_texts(request)]
    assert len(lengths) == 120
    assert (min(lengths), max(lengths)) == (5, 20)
    assert requests == build_requests(workload, endpoint(), 30)
    assert requests != build_requests(
        Workload(num_items=4, min_chars=5, max_chars=20, seed=2), endpoint(), 30
    )
    (long,) = read_texts(build_requests(Workload(min_chars=200_000, max_chars=200_000), endpoint(), 1)[0])
    assert len(long) == 200_000


def test_texts_of_a_file_are_taken_line_by_line_and_a_base_url_may_end_in_v1(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("one\n\n  two  \nthree\n")
    workload = Workload(num_items=2, texts_file=str(tmp_path / "texts.txt"))
    requests = build_requests(workload, endpoint("http://host/v1"), 2)
    assert [read_texts(request) for request in requests] == [["one", "two"], ["three", "one"]]
    assert requests[0].startswith(b"POST /v1/embeddings HTTP/1.1")


def turn(url: str, number: int, requests_per_s: float, **changes: object) -> Turn:
    values = {
        "level": Level(num_clients=4), "num_ok": 10, "seconds": 1.0, "requests_per_s": requests_per_s,
        "inputs_per_s": requests_per_s, "tokens_per_s": None, "mean_ms": None, "late_ms": 0.0, "errors": {},
        "latency_ms": {50: 1000 / requests_per_s, 90: 2.0, 99: None},
    }  # fmt: skip
    return Turn(url, number, Summary(**{**values, **changes}))


def test_ratios_are_within_a_round_and_the_table_has_medians(capsys: pytest.CaptureFixture[str]) -> None:
    turns = [turn("a", 0, 100), turn("b", 0, 200), turn("b", 1, 90), turn("a", 1, 30)]
    ratios = find_ratios(turns, ["a", "b"], Level(num_clients=4))
    assert ratios["requests/s"] == [2.0, 3.0]
    assert ratios["p50"] == pytest.approx([1 / 2, 1 / 3])
    assert "p99" not in ratios
    print_report(turns, ["a", "b"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:3] == ["a", "4", "65.0"]
    assert lines[-1].split()[1:5] == ["2.50", "(2.00", "…", "3.00)"]


def test_a_late_generator_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    print_report([turn("a", 0, 10, level=Level(per_s=10.0), late_ms=50.0)], ["a"])
    assert "sent over 20 ms late" in capsys.readouterr().out


def test_a_plot_is_xml_with_a_curve_per_server_and_percentile_whatever_the_names() -> None:
    turns = [turn('http://a/?x="<', 0, 100), turn("http://b", 0, 50, errors={"429": 2})]
    root = ElementTree.fromstring(draw_plot(turns, ['http://a/?x="<', "http://b"], 'title "<&'))
    curves = [each for each in root.iter() if each.tag.endswith("path")]
    assert len(curves) == 2 * (2 * 3 + 2)  # with the legend
    assert [find_round_maximum(values) for values in ([], [0.0], [3.0], [21.0], [100.0])] == [
        1,
        1,
        5,
        25,
        100,
    ]
