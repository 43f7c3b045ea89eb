from __future__ import annotations

import sys

import pytest

from infinity_emb.engine.progress import MIN_ITEMS, is_interactive, open_progress_bar


@pytest.fixture
def _prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)


def work(num_items: int) -> bool:
    bar = open_progress_bar(num_items, "Embedding")
    bar.update(num_items // 2)
    bar.update(num_items - num_items // 2)
    bar.close()
    return bar.is_shown


def test_a_program_shows_nothing(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delattr(sys, "ps1", raising=False)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)

    assert not is_interactive()
    assert not work(MIN_ITEMS * 10)
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("_prompt")
def test_an_interactive_session_shows_long_work(capfd: pytest.CaptureFixture[str]) -> None:
    assert is_interactive()
    assert work(MIN_ITEMS)
    out, err = capfd.readouterr()
    assert out == ""
    assert f"{MIN_ITEMS}/{MIN_ITEMS}" in err
    assert "Embedding" in err


@pytest.mark.usefixtures("_prompt")
def test_short_work_shows_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    assert not work(MIN_ITEMS - 1)
    assert capfd.readouterr() == ("", "")


def test_a_notebook_is_interactive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sys, "ps1", raising=False)
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert is_interactive()
