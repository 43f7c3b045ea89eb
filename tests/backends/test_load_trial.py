from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from infinity_emb.backends import load_trial
from infinity_emb.backends.load_trial import load_in_trial
from infinity_emb.backends.registry import load_model
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.config.model_options import LoadOptions
from infinity_emb.errors import ModelTooLarge, StartupError
from infinity_emb.hub.resolve import ModelFiles
from tests.support.small_models.embedders import save_small_model

PATIENCE_S = 60.0


def options_for(model: Path | str, **options: Any) -> LoadOptions:
    given = {"engine": "debugengine", "needs_trial": True, **options}
    return EngineArgs(str(model), **given).load


def faulty_model(folder: Path, reason: str) -> str:
    """A model that fails to load for the reason, as long as the file that names it is there."""
    (folder / "fault").write_text(reason)
    return f"debug?load_fails={folder / 'fault'}"


def is_running(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_ended(process_id: int) -> bool:
    until_s = time.monotonic() + PATIENCE_S
    while is_running(process_id) and time.monotonic() < until_s:
        time.sleep(0.02)
    return not is_running(process_id)


@pytest.fixture
def refuse_trials(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make every further trial an error."""

    def refuse(program: str) -> Any:
        raise AssertionError("another trial")

    return lambda: monkeypatch.setattr(load_trial, "start_isolated_python", refuse)


@pytest.mark.parametrize(
    ("reason", "error", "message"),
    [
        ("abort", StartupError, "could not be loaded: it ended the process that tried to, by SIGABRT"),
        ("hang", StartupError, "took longer than 1 s; raise --load-timeout-s if its files are right"),
        ("broken weights", StartupError, "told not to load: broken weights"),
        ("memory", ModelTooLarge, "there is no memory for model"),
    ],
)
def test_what_a_model_does_while_it_is_loaded_is_an_error_and_no_more(
    reason: str, error: type[StartupError], message: str, tmp_path: Path
) -> None:
    args = options_for(faulty_model(tmp_path, reason), load_timeout_s=1 if reason == "hang" else 60)
    with pytest.raises(error, match=message) as caught:
        load_model(args)
    assert type(caught.value) is error


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such limit")
def test_a_model_that_takes_memory_without_end_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(load_trial, "free_memory_bytes", lambda: 2**29)
    with pytest.raises(ModelTooLarge, match="there is no memory for model"):
        load_model(options_for(faulty_model(tmp_path, "all memory"), load_timeout_s=60))


def test_a_model_that_loads_is_loaded_in_this_process_then(refuse_trials: Any, tmp_path: Path) -> None:
    args = options_for("a model that loads", device_id=(0, 1), model_warmup=False)
    assert len(load_model(args).replicas) == 2
    refuse_trials()
    assert len(load_model(args).replicas) == 2
    with pytest.raises(AssertionError, match="another trial"):
        load_model(options_for("another model"))


def test_a_folder_that_has_changed_is_tried_again(refuse_trials: Any, tmp_path: Path) -> None:
    args, files = options_for(tmp_path), ModelFiles(tmp_path, "folder", None)
    load_in_trial(args, files)
    refuse_trials()
    load_in_trial(args, files)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(AssertionError, match="another trial"):
        load_in_trial(args, files)


def test_a_model_that_has_failed_is_tried_again(tmp_path: Path) -> None:
    args = options_for(faulty_model(tmp_path, "broken weights"))
    with pytest.raises(StartupError, match="broken weights"):
        load_model(args)
    (tmp_path / "fault").unlink()
    load_model(args)


def test_other_models_are_loaded_at_once(refuse_trials: Any) -> None:
    refuse_trials()
    load_model(options_for("a model of the command line", needs_trial=False))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_processes_that_the_trial_has_started_end_with_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    note = tmp_path / "pid"
    program = (
        "import subprocess, sys, time; sys.stdout.write(chr(10)); sys.stdout.flush();"
        " child = subprocess.Popen(['sleep', '100']);"
        f" open({str(note)!r}, 'w').write(str(child.pid)); time.sleep(100)"
    )
    monkeypatch.setattr(load_trial, "_PROGRAM", program)
    with pytest.raises(StartupError, match="took longer than 2 s"):
        load_in_trial(options_for("any", load_timeout_s=2), None)
    assert wait_until_ended(int(note.read_text()))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a process of its parent's end")
def test_a_trial_ends_with_the_server(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from infinity_emb.backends import load_trial\n"
        "from tests.backends.test_load_trial import options_for\n"
        "start = load_trial.start_isolated_python\n"
        "def start_and_tell(program):\n"
        "    child = start(program)\n"
        "    print(child.pid, flush=True)\n"
        "    return child\n"
        "load_trial.start_isolated_python = start_and_tell\n"
        "load_trial.load_in_trial(options_for(sys.argv[1]), None)\n"
    )
    command = [sys.executable, "-c", program, faulty_model(tmp_path, "hang")]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.getcwd()})
    try:
        assert server.stdout is not None
        trial = int(server.stdout.readline())
        server.send_signal(signal.SIGSTOP)
        time.sleep(2)  # until the trial hangs
        assert is_running(trial)
    finally:
        server.kill()
        server.wait(PATIENCE_S)
        server.stdout.close()  # type: ignore[union-attr]
    assert wait_until_ended(trial)


def test_a_child_that_ends_by_itself_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_trial, "_PROGRAM", "import sys; sys.exit(3)")
    with pytest.raises(StartupError, match="ended the process that tried to, by exit code 3"):
        load_in_trial(options_for("any"), None)


@pytest.mark.model
def test_a_tokenizer_that_multiplies_texts_does_not_end_the_server(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where Rust gets no memory it aborts, and did so with the server."""
    folder = save_small_model(tmp_path, "bert")
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    twice = {"type": "Replace", "pattern": {"String": "e"}, "content": "ee"}
    tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [tokenizer["normalizer"], *[twice] * 40]}
    file.write_text(json.dumps(tokenizer))
    monkeypatch.setattr(load_trial, "free_memory_bytes", lambda: 2 * 2**30)
    with pytest.raises(StartupError, match="ended the process that tried to, by SIGABRT"):
        load_model(options_for(folder, engine="torch"))
