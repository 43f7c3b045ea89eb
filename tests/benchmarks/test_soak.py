"""Run the soak for a few seconds; `make bench-soak` runs it for longer."""

from __future__ import annotations

import pytest

from benchmarks import soak


@pytest.mark.slow
@pytest.mark.model
def test_nothing_leaks_hangs_or_is_answered_wrongly_under_faults() -> None:
    report = soak.run(minutes=0.1, texts_per_bulk=32)
    assert [str(line) for line in report if not line.is_passed and not line.is_timed] == []
