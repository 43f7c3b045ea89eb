from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

import pytest

from infinity_emb import watchdog


class Clock:
    """`time.monotonic`, and an event that is waited for by moving it on; nothing here takes real time.

    stands_still: at a time, the process stops for so many seconds.
    """

    def __init__(self, stands_still: dict[float, float], until_s: float) -> None:
        self.now_s = 0.0
        self._stands_still = dict(stands_still)
        self._until_s = until_s

    def monotonic(self) -> float:
        return self.now_s

    def wait(self, pause_s: float) -> bool:
        assert pause_s > 0
        end_s = self.now_s + pause_s
        for at_s in sorted(self._stands_still):
            if self.now_s <= at_s < end_s:
                end_s = max(end_s, at_s + self._stands_still.pop(at_s))
        self.now_s = end_s
        return self.now_s > self._until_s


def reports_of(
    monkeypatch: pytest.MonkeyPatch,
    at_work: Callable[[float], Iterable[tuple[str, float]]],
    *,
    limit_s: float = 8.0,
    stands_still: dict[float, float] | None = None,
) -> list[tuple[str, float]]:
    """Who was reported in a hundred seconds, and when. at_work: time → who is at work since when."""
    clock = Clock(stands_still or {}, until_s=100)
    monkeypatch.setattr(watchdog, "time", clock)
    reported: list[tuple[str, float]] = []

    def report(worker: str) -> None:
        reported.append((worker, clock.now_s))

    def those_at_work() -> list[tuple[str, float]]:
        return [each for each in at_work(clock.now_s) if each[0] not in dict(reported)]

    is_over: threading.Event = clock  # type: ignore[assignment]  # of which `wait` alone is used
    watchdog.watch(is_over, limit_s, those_at_work, report)
    return reported


def test_who_never_returns_is_reported_once_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    reported = reports_of(monkeypatch, lambda now_s: [("hangs", 3.25)] if now_s >= 3.25 else [])
    assert reported == [("hangs", pytest.approx(11.25, abs=0.01))]


def test_who_is_always_at_something_new_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reports_of(monkeypatch, lambda now_s: [("works", now_s - now_s % 7.9)]) == []


def test_of_several_the_one_that_hangs_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    reported = reports_of(monkeypatch, lambda now_s: [("works", now_s), ("hangs", 1.0)])
    assert [worker for worker, _ in reported] == ["hangs"]


def test_a_process_that_stood_still_is_not_taken_for_a_batch_that_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The batch takes four seconds, and an hour passes in the midst of it."""
    reported = reports_of(
        monkeypatch,
        lambda now_s: [("works", 1.0)] if now_s < 3605 else [],
        stands_still={3.0: 3600.0},
    )
    assert reported == []


def test_what_hangs_after_the_process_stood_still_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    (report,) = reports_of(monkeypatch, lambda now_s: [("hangs", 1.0)], stands_still={3.0: 40.0})
    assert report == ("hangs", pytest.approx(51.0, abs=0.01))
