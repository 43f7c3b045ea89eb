"""The comparison with other servers: what is installed, who is left out and why, and what is printed."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import httpx
import numpy as np
import pytest

from benchmarks.peers import __main__ as bench_module
from benchmarks.peers import servers
from benchmarks.peers.__main__ import OURS, Bench, Figures, Workload, print_report
from benchmarks.peers.app import build_app
from benchmarks.peers.environments import AIPERF, PEERS
from benchmarks.peers.servers import PeerServer, PeerUnavailable, check_same_model
from scripts.environments import Environments

pytestmark = pytest.mark.anyio


class FakeServer:
    """A server that is only a port."""

    def __init__(self, port: int = 1) -> None:
        self.port = self.pid = port
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True


@pytest.mark.parametrize("environments", [PEERS, AIPERF], ids=["peers", "AIPerf"])
def test_every_package_has_an_exact_version(environments: Environments) -> None:
    for name in environments.by_name:
        lines = (environments.pins / f"{name}.txt").read_text().splitlines()
        assert lines
        assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []


def test_the_lists_have_what_is_asked_for() -> None:
    for name, environment in PEERS.by_name.items():
        listed = (PEERS.pins / f"{name}.txt").read_text().lower().replace("_", "-").splitlines()
        exact = [each for each in environment.asked if "==" in each]
        assert [each for each in exact if re.sub(r"\[.*\]", "", each).lower() not in listed] == []


def test_a_peer_that_cannot_be_installed_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Environments, name: str) -> Path:
        raise subprocess.CalledProcessError(1, ["pip"])

    monkeypatch.setattr(Environments, "find_python", fail)
    with pytest.raises(PeerUnavailable, match=r"^cannot be installed: .*pip"):
        PeerServer("fastembed", tmp_path)


def test_a_peer_that_ends_at_once_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Environments, "find_python", lambda self, name: Path("/bin/sh"))
    monkeypatch.setattr(
        servers, "_make_command", lambda *_: ["/bin/sh", "-c", "echo cannot import torch; exit 1"]
    )
    with pytest.raises(PeerUnavailable, match=r"^did not become ready: cannot import torch$"):
        PeerServer("fastembed", tmp_path)


def test_other_vectors_are_no_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = {1: np.eye(3, dtype=np.float32), 2: np.roll(np.eye(3, dtype=np.float32), 1, axis=0)}
    monkeypatch.setattr(servers, "_embed", lambda port, texts: vectors[port])
    check_same_model(FakeServer(1), FakeServer(1), ["a", "b", "c"])
    with pytest.raises(
        PeerUnavailable, match=r"computes other vectors: the lowest cosine to ours is 0\.0000"
    ):
        check_same_model(FakeServer(1), FakeServer(2), ["a", "b", "c"])


async def test_the_plain_app_answers_as_openai_does() -> None:
    app = build_app(lambda texts: np.array([[len(text), 0.5] for text in texts], dtype=np.float32))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://peer") as client:
        several = await client.post("/embeddings", json={"input": ["a", "bc"], "encoding_format": "float"})
        one = await client.post("/embeddings", json={"input": "abc"})
    assert [each["embedding"] for each in several.json()["data"]] == [[1.0, 0.5], [2.0, 0.5]]
    assert [each["index"] for each in several.json()["data"]] == [0, 1]
    assert one.json()["data"][0]["embedding"] == [3.0, 0.5]


def make_bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A bench whose servers are ports; `broken` cannot be installed."""
    workload = Workload("single", ["a"] * 4, 1, 2, {"fast": 2.0}, 40)

    def start(name: str, folder: Path) -> FakeServer:
        if name == "broken":
            raise PeerUnavailable("cannot be installed: no network")
        return FakeServer(2)

    monkeypatch.setattr(bench_module, "make_workloads", lambda: [workload, workload])
    monkeypatch.setattr(bench_module, "Server", lambda flags: FakeServer(1))
    monkeypatch.setattr(bench_module, "PeerServer", start)
    monkeypatch.setattr(bench_module, "check_same_model", lambda ours, peer, texts: None)
    return Bench(["fast", "broken"])


def test_a_report_has_ratios_limits_and_who_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = make_bench(monkeypatch)
    ours, fast = bench.servers[OURS], bench.servers["fast"]
    bench.limits["single"] = [400.0, 400.0]
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    bench.figures["single", OURS] = Figures(
        [200.0, 300.0], [10.0, 10.0], [20.0, 20.0], [5.0, 7.0], [0.5, 0.5]
    )
    bench.figures["single", "fast"] = Figures(
        [100.0, 100.0], [30.0, 30.0], [90.0, 90.0], [9.0, 9.0], [0.5, 0.5]
    )
    bench.close()
    print_report(bench)
    shown = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert "the products alone 400.0 1.00 2.5 7.50" in lines
    assert "this server 250.0 0.62 10.0 20.0 6.00 0.50 1.60" in lines
    assert "fast 100.0 0.25 30.0 90.0 9.00 0.50 4.00 2.50, 2.00 … 3.00, goal 2.0" in lines
    assert "skipped broken: cannot be installed: no network" in shown
    summary = json.loads(shown.splitlines()[-1])
    assert summary["skipped"] == {"broken": "cannot be installed: no network"}
    assert summary["workloads"]["single"]["fast"]["p99_ms"] == [90.0, 90.0]
    assert isinstance(ours, FakeServer)
    assert isinstance(fast, FakeServer)
    assert ours.is_closed
    assert fast.is_closed


def test_servers_take_turns_and_the_first_round_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make_bench(monkeypatch)
    turns: list[tuple[str, bool]] = []
    monkeypatch.setattr(bench_module, "measure_limit", lambda workload: 1.0)
    monkeypatch.setattr(
        Bench, "_measure", lambda self, workload, name, *, is_counted: turns.append((name, is_counted))
    )
    bench.workloads = bench.workloads[:1]
    bench.run(2)
    bench.close()
    assert turns == [
        (OURS, False),
        ("fast", False),
        ("fast", True),
        (OURS, True),
        (OURS, True),
        ("fast", True),
    ]
    assert bench.limits["single"] == [1.0, 1.0]
