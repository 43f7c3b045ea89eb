"""What a terminal shows while models load, and how long each stage took."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import time
from collections.abc import Iterator

import pytest

from infinity_emb.cli.load_display import watch_loads
from infinity_emb.storage.load_progress import LoadProgress, get_listener, report_stage
from tests.support.server_process import DEADLINE_S


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def wait_for(self, text: str) -> None:
        """The bar is drawn ten times a second."""
        deadline_s = time.monotonic() + DEADLINE_S
        while text not in self.getvalue():
            assert time.monotonic() < deadline_s, self.getvalue()
            time.sleep(0.02)


@contextlib.contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """Stand for stderr, and for the log on it. No fixture: pytest replaces stderr between set-up and test."""
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    handler = logging.StreamHandler(shown)
    logging.getLogger().addHandler(handler)
    try:
        yield shown
    finally:
        logging.getLogger().removeHandler(handler)


def test_a_terminal_shows_the_model_and_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as shown, watch_loads(["first", "second"], is_drawn=True):
        listener = get_listener()
        assert listener is not None
        report_stage("finding files")
        listener(LoadProgress("downloading", 30_000_000, 91_000_000))
        shown.wait_for("first (1 of 2): downloading 30 of 91 MB")
        report_stage("reading weights")
        report_stage("finding files")
        report_stage("warming up")
        shown.wait_for("second (2 of 2): warming up")


def test_lines_of_the_log_stay_whole_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "a line of the log " * 10
    with terminal(monkeypatch) as shown:
        with watch_loads(["only"], is_drawn=True):
            report_stage("reading weights")
            logging.getLogger("infinity_emb").warning(line)
        logging.getLogger("infinity_emb").warning("after the load")
    assert line in shown.getvalue()
    assert shown.getvalue().endswith("after the load\n")


def test_the_cursor_is_never_hidden_as_a_signal_ends_the_process_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with terminal(monkeypatch) as shown, watch_loads(["only"], is_drawn=True):
        report_stage("reading weights")
        shown.wait_for("only: reading weights")
    assert "\x1b[?25l" not in shown.getvalue()


def test_nothing_is_drawn_elsewhere_and_the_stages_are_timed(capsys: pytest.CaptureFixture[str]) -> None:
    with watch_loads(["only"], is_drawn=False) as times:
        for stage in ("finding files", "reading weights", "warming up", "reading weights"):
            report_stage(stage)
    assert capsys.readouterr() == ("", "")
    assert list(times.seconds) == ["finding files", "reading weights", "warming up"]
    assert all(seconds >= 0 for seconds in times.seconds.values())


def test_no_report_is_expected_after_the_load() -> None:
    with watch_loads(["only"], is_drawn=False) as times:
        report_stage("reading weights")
    report_stage("warming up")
    assert list(times.seconds) == ["reading weights"]
