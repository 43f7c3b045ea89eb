from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infinity_emb import cli
from tests.support.bulk_jobs import make_rows, read_rows, run_bulk, write_lines
from tests.support.server_process import CLEAN_ENVIRON, COMMAND, DEADLINE_S

FAKE = ["--engine", "debugengine", "--model-id", "debug?fail_on=poison"]


@pytest.fixture(autouse=True)
def _no_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infinity_emb.cli.commands.configure_logging", lambda *_: None)
    for name in os.environ.keys() - CLEAN_ENVIRON.keys():
        monkeypatch.delenv(name)


@pytest.mark.parametrize(("text", "exit_code"), [("good", 0), ("poison", 3)])
def test_the_exit_code_tells_of_bad_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, exit_code: int
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"text": "good"}, {"text": text}])
    output = tmp_path / "out.parquet"
    assert cli.main(["embed", str(source), "-o", str(output), *FAKE]) == exit_code
    captured = capsys.readouterr()
    assert captured.out == ""
    ending = f"1 without a result, see {output}.bad.jsonl" if exit_code else f": {output}"
    assert re.fullmatch(rf"embedded 2 rows in .*{re.escape(ending)}\n", captured.err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embed", "{}"], "no output is given; name a file or a folder with -o"),
        (["embed", "{}", "-o", "out.npy", *FAKE, "--model-id", "debug2"], "computes with one model, and 2"),
        (["embed", "missing.txt", "-o", "out.npy", *FAKE], "input 'missing.txt' cannot be read"),
        (["embed", "{}", "-o", "out.npy", *FAKE, "--url", "localhost:7997"], "--url must start with http://"),
        (["rerank", "{}", "-o", "out.npy", *FAKE, "--query", "q"], "does not support 'rerank'"),
    ],
)
def test_a_job_that_cannot_start_ends_with_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    source = write_lines(tmp_path / "in.jsonl", [{"text": "good"}])
    assert cli.main([argument.format(source) for argument in arguments]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embed"], "the following arguments are required: INPUT"),
        (["embed", "a", "-o", "b", "--query", "q"], "No such option: --query"),
        (["rerank", "a", "-o", "b", "--sparse"], "No such option: --sparse"),
        (["embed", "a", "-o", "b", "--output-colum", "q"], "did you mean '--output-column'"),
    ],
)
def test_options_of_another_command_are_usage_errors(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    assert message in capsys.readouterr().err


def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert cli.main(["embed", "x", "-o", "y.npy"]) == 1
    assert "pip install 'infinity-emb[bulk]'" in capsys.readouterr().err


def test_the_bar_is_drawn_on_terminals_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_lines(tmp_path / "in.jsonl", make_rows(50))
    run_bulk(source, tmp_path / "quiet.npy")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run_bulk(source, tmp_path / "shown.npy")
    assert "row/s" in capsys.readouterr().err


def test_a_process_that_is_stopped_or_killed_at_random_and_started_again_writes_every_row_once(
    tmp_path: Path,
) -> None:
    rows = make_rows(40_000)
    source, output = write_lines(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    command = [*COMMAND, "embed", str(source), "-o", str(output), *FAKE]
    for number, message in [(signal.SIGINT, "stopped; the same command continues\n"), (signal.SIGKILL, "")]:
        process = subprocess.Popen(command, env=CLEAN_ENVIRON, stderr=subprocess.PIPE, text=True)
        _wait_for_another_part(tmp_path / "out.jsonl.parts", process)
        process.send_signal(number)
        assert process.communicate(timeout=DEADLINE_S)[1] == message
        assert process.returncode == (130 if message else -number)
    result = subprocess.run(command, env=CLEAN_ENVIRON, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr.startswith("embedded ")
    assert "embedded 40000 rows" not in result.stderr
    assert [row["id"] for row in read_rows(output)] == list(range(len(rows)))


def _wait_for_another_part(folder: Path, process: subprocess.Popen[str]) -> None:
    num_before = len(list(folder.glob("*.part")))
    while len(list(folder.glob("*.part"))) <= num_before:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
