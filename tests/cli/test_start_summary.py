from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import select
import signal
import subprocess
import sys
from typing import Any

import pytest

from infinity_emb.cli.load_display import StageTimes
from infinity_emb.cli.log_setup import JsonFormatter
from infinity_emb.cli.start_summary import StartSummary
from infinity_emb.config.server_config import ServerConfig
from infinity_emb.engine.array import AsyncEngineArray
from tests.support.server_process import CLEAN_ENVIRON, COMMAND, DEADLINE_S, FAKE
from tests.support.tiny_server import debug_args

URL = "http://127.0.0.1:7997"


@pytest.fixture(scope="module")
def engines() -> AsyncEngineArray:
    return AsyncEngineArray.from_args([debug_args("embedder"), debug_args("ranker?kind=reranker")])


def pass_for_terminal(monkeypatch: pytest.MonkeyPatch, level: int, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")  # without colours
    caplog.set_level(level, "infinity_emb")


def announce(engines: AsyncEngineArray, **options: Any) -> None:
    times = StageTimes()
    times.seconds = {"importing libraries": 3.14, "reading weights": 0.01, "warming up": 2.0}
    StartSummary(engines, ServerConfig(**options), URL, times).announce()


@pytest.mark.parametrize(
    ("options", "links"),
    [
        ({}, f", metrics at {URL}/metrics, page at {URL}/ui, docs at {URL}/docs"),
        ({"url_prefix": "/api"}, f", metrics at {URL}/metrics, page at {URL}/api/ui, docs at {URL}/api/docs"),
        ({"ui": False, "docs": False, "metrics": "off"}, ""),
    ],
)
def test_a_log_has_one_line_with_what_is_on(
    options: dict[str, Any], links: str, engines: AsyncEngineArray, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "infinity_emb")
    announce(engines, **options)
    [line] = [record.getMessage() for record in caplog.records]
    assert re.fullmatch(re.escape(f"listening on {URL}{links}") + r", first vector after \d+\.\d s", line)


def test_a_log_of_json_has_the_same_for_machines(
    engines: AsyncEngineArray, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "infinity_emb")
    announce(engines, log_format="json")
    line = json.loads(JsonFormatter().format(caplog.records[-1]))
    summary = line["summary"]
    assert line["message"].startswith(f"listening on {URL}")
    assert (summary["url"], summary["docs"]) == (URL, f"{URL}/docs")
    assert summary["limits"]["max_client_batch_size"] == 2048
    assert summary["first_vector_s"] > 0
    assert summary["load_s"] == {"importing libraries": 3.14, "reading weights": 0.01, "warming up": 2.0}
    assert [(each["id"], each["capabilities"]) for each in summary["models"]] == [
        ("embedder", ["embed"]),
        ("ranker", ["rerank"]),
    ]


def test_a_terminal_has_a_table_of_models_and_addresses_on_one_screen(
    engines: AsyncEngineArray,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pass_for_terminal(monkeypatch, logging.INFO, caplog)
    announce(engines, api_key=("secret",))
    out, err = capsys.readouterr()
    lines = [line.split() for line in err.splitlines()]
    assert out == ""
    assert caplog.records == []
    assert ["embedder", "embed", "debugengine,", "cpu,", "float32", "8,192", "16,384"] in lines
    assert ["ranker", "rerank", "debugengine,", "cpu,", "float32", "8,192", "16,384"] in lines
    assert ["server", URL] in lines
    assert ["metrics", f"{URL}/metrics"] in lines
    assert "a key is needed" in " ".join(err.split())
    assert "s, most of it importing libraries 3.1, warming up 2.0" in " ".join(err.split())
    assert "secret" not in err
    assert len(lines) <= 16
    assert max(map(len, err.splitlines())) <= 80


def test_a_log_that_shows_warnings_alone_has_no_table(
    engines: AsyncEngineArray,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pass_for_terminal(monkeypatch, logging.WARNING, caplog)
    announce(engines)
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(sys.platform == "win32", reason="has no pseudo-terminals")
def test_a_start_in_a_terminal_prints_our_lines_and_nothing_else() -> None:
    import pty

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "v2", *FAKE, "--model-id", "debug"],
        stderr=theirs,
        stdout=theirs,
        env=CLEAN_ENVIRON | {"COLUMNS": "100", "TERM": "dumb"},
    )
    os.close(theirs)
    shown, is_stopped = b"", False
    try:
        with contextlib.suppress(OSError):  # the end of a terminal
            while select.select([ours], [], [], DEADLINE_S)[0] and (part := os.read(ours, 4096)):
                shown += part
                if not is_stopped and b"Ctrl-C stops the server" in shown:
                    process.send_signal(signal.SIGINT)
                    is_stopped = True
        exit_code = process.wait(DEADLINE_S)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    lines = shown.decode().splitlines()
    table = next(number for number, line in enumerate(lines) if line.startswith("model "))
    others = [line for line in lines[:table] if line.strip() and " infinity_emb: " not in line]
    assert exit_code == 0
    assert others == []
    assert len(lines) <= 24
