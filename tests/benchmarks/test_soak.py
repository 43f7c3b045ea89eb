"""The soak, for a quarter of a minute; `make bench-soak` runs it for as long as you like."""

from __future__ import annotations

import pytest

from benchmarks import soak


@pytest.mark.slow
@pytest.mark.model
def test_nothing_leaks_hangs_or_is_answered_wrongly_under_faults() -> None:
    report = soak.run(minutes=0.25)
    assert [str(line) for line in report if not line.is_fine and not line.is_timed] == []
