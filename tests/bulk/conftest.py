from __future__ import annotations

import pytest


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commit every 10 rows."""
    monkeypatch.setattr("infinity_emb.bulk.reading.MAX_WINDOW_ROWS", 10)
