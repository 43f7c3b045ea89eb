from __future__ import annotations

import logging
import resource
from typing import Any

import pytest

from infinity_emb.cli import descriptors
from infinity_emb.cli.descriptors import MAX_EXTRA, NUM_RESERVED, fit_connections

NUM_OPEN = 30


class Limits:
    """The limits of open files of a process that has NUM_OPEN."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, soft: int, hard: int) -> None:
        self.limits = (soft, hard)
        monkeypatch.setattr(resource, "getrlimit", lambda _: self.limits)
        monkeypatch.setattr(resource, "setrlimit", self._set)
        monkeypatch.setattr(descriptors, "_count_open_files", lambda: NUM_OPEN)

    def _set(self, _: int, limits: tuple[int, int]) -> None:
        self.limits = limits


@pytest.mark.parametrize("hard", [2**20, resource.RLIM_INFINITY])
def test_the_soft_limit_is_raised_as_far_as_needed(monkeypatch: pytest.MonkeyPatch, hard: int) -> None:
    """The usual one is 1024, and 4096 connections are allowed."""
    limits = Limits(monkeypatch, 1024, hard)
    assert fit_connections(4096) == (4096, MAX_EXTRA)
    assert limits.limits == (NUM_OPEN + 4096 + MAX_EXTRA + NUM_RESERVED, hard)


@pytest.mark.parametrize("soft", [10_000, resource.RLIM_INFINITY])
def test_a_limit_that_is_high_enough_is_left_alone(monkeypatch: pytest.MonkeyPatch, soft: int) -> None:
    limits = Limits(monkeypatch, soft, resource.RLIM_INFINITY)
    assert fit_connections(4096) == (4096, MAX_EXTRA)
    assert limits.limits == (soft, resource.RLIM_INFINITY)


@pytest.mark.parametrize("hard", [32, 64, 256, 1024, 4096])
def test_connections_stay_below_the_hard_limit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, hard: int
) -> None:
    caplog.set_level(logging.WARNING, "infinity_emb")
    limits = Limits(monkeypatch, 32, hard)
    num_regular, num_extra = fit_connections(4096)
    assert limits.limits == (hard, hard)
    assert num_regular >= 1
    assert num_extra >= 1
    assert hard < 64 or NUM_OPEN + num_regular + num_extra < hard
    [told] = caplog.messages
    assert f"the limit is {hard}: {num_regular} connections are served" in told


def test_a_limit_that_the_system_refuses_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    Limits(monkeypatch, 1024, resource.RLIM_INFINITY)

    def refuse(*_: Any) -> None:
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    num_regular, num_extra = fit_connections(4096)
    assert NUM_OPEN + num_regular + num_extra < 1024
