"""The overload benchmark fails when a promise is not kept."""

from __future__ import annotations

import json
import re

import numpy as np
import pybase64
import pytest

from benchmarks.overload_account import Account, Vectors
from benchmarks.raw_load import PROBE, Answer

EXPECTED = np.eye(2, dtype=np.float32).reshape(2, 1, 2)


def probe(latency_s: float, outcome: str = "200") -> Answer:
    return Answer(PROBE, 1.0, 1.0 + latency_s, outcome)


def accepted(number: int, vector: Vectors) -> Answer:
    entry = {"embedding": pybase64.b64encode(vector.tobytes()).decode()}
    body = json.dumps({"data": [entry]}).encode()
    return Answer(number, 0.0, 1.0, "200", b"HTTP/1.1 200 OK\r\n\r\n" + body)


def list_broken(*answers: Answer, num_overflows: int = 0) -> list[str]:
    account = Account(num_overflows=num_overflows)
    account.add_answers(answers, EXPECTED)
    return account.list_broken()


def test_nothing_is_broken_if_all_answers_are_right_and_in_time() -> None:
    answers = [accepted(number, EXPECTED[number]) for number in (0, 1)]
    assert list_broken(*answers, *[probe(0.1)] * 200, probe(9.0), Answer(0, 0.0, 9.0, "429")) == []


@pytest.mark.parametrize(
    ("answers", "num_overflows", "message"),
    [
        ([probe(0.1)] * 90 + [probe(0.6)] * 10, 0, "99th percentile of /health: 0.60 s"),
        ([probe(0.1)], 3, "backlog was full 3 times"),
        ([probe(0.1, "503")], 0, "health: {'503': 1}"),
        ([probe(0.1), Answer(0, 0.0, 1.0, "reset")], 0, "unexpected outcomes: {'reset': 1}"),
        ([probe(0.1), accepted(0, EXPECTED[1])], 0, "1 wrong vectors"),
        ([probe(0.1), accepted(0, EXPECTED[0] * np.nan)], 0, "1 wrong vectors"),
    ],
)
def test_each_promise_that_is_not_kept_is_named(
    answers: list[Answer], num_overflows: int, message: str
) -> None:
    [broken] = list_broken(*answers, num_overflows=num_overflows)
    assert re.search(re.escape(message), broken)


def test_the_slowest_probe_is_told_with_its_time() -> None:
    account = Account()
    account.add_answers([probe(0.1), probe(0.3), probe(0.2)], EXPECTED)
    assert "the slowest 0.30 s, asked after 1.0 s" in str(account)
