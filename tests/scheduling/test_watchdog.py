from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

import pytest

from infinity_emb.scheduling.watchdog import watch_for_hangs


class Clock:
    """A clock, and an event whose `wait` moves it on; no test takes real time.

    suspensions: seconds for which the process is suspended, by the time at which it is.
    """

    def __init__(self, suspensions: dict[float, float], until_s: float) -> None:
        self.now_s = 0.0
        self._suspensions = dict(suspensions)
        self._until_s = until_s

    def monotonic(self) -> float:
        return self.now_s

    def wait(self, pause_s: float) -> bool:
        assert pause_s > 0
        end_s = self.now_s + pause_s
        for at_s in sorted(self._suspensions):
            if self.now_s <= at_s < end_s:
                end_s = max(end_s, at_s + self._suspensions.pop(at_s))
        self.now_s = end_s
        return self.now_s > self._until_s


def watch(
    busy_since: Callable[[float], Iterable[tuple[str, float]]],
    *,
    suspensions: dict[float, float] | None = None,
) -> list[tuple[str, float]]:
    """Watch for a hundred seconds with a timeout of eight; return which workers were reported, and when.

    busy_since: time → the busy workers, each with the time since which it is busy.
    """
    clock = Clock(suspensions or {}, until_s=100)
    reported: list[tuple[str, float]] = []

    def report(worker: str) -> None:
        reported.append((worker, clock.now_s))

    def busy_workers() -> list[tuple[str, float]]:
        return [(name, since_s) for name, since_s in busy_since(clock.now_s) if name not in dict(reported)]

    stop: threading.Event = clock  # type: ignore[assignment]  # only `wait` is used
    watch_for_hangs(stop, 8.0, busy_workers, report, clock=clock.monotonic)
    return reported


def test_a_worker_that_never_returns_is_reported_once_after_the_timeout() -> None:
    reported = watch(lambda now_s: [("hangs", 3.25)] if now_s >= 3.25 else [])
    assert reported == [("hangs", pytest.approx(11.25, abs=0.01))]


def test_a_worker_that_always_begins_new_work_is_not_reported() -> None:
    assert watch(lambda now_s: [("works", now_s - now_s % 7.9)]) == []


def test_only_the_worker_that_hangs_is_reported() -> None:
    reported = watch(lambda now_s: [("works", now_s), ("hangs", 1.0)])
    assert [worker for worker, _ in reported] == ["hangs"]


def test_the_time_of_a_suspension_does_not_count() -> None:
    """The batch takes four seconds, and the process is suspended for an hour in the middle of it."""
    reported = watch(
        lambda now_s: [("works", 1.0)] if now_s < 3605 else [],
        suspensions={3.0: 3600.0},
    )
    assert reported == []


def test_a_hang_after_a_suspension_is_reported() -> None:
    (report,) = watch(lambda now_s: [("hangs", 1.0)], suspensions={3.0: 40.0})
    assert report == ("hangs", pytest.approx(51.0, abs=0.01))
