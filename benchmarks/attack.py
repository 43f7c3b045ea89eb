"""Attack a server with one client, and measure what another one waits, memory, and how long the loop is held.

    python -m benchmarks.attack [--seconds 10] [--only NAME]

Each attack has a server of its own. The other client sends a text of 2 kB again and again, first alone and
then beside the attack. The last columns count statuses; 0 stands for no response. Attacker, client and server
share the cores.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.attack_cases import CASES, HOG, OTHER, Case, Traffic
from benchmarks.rounds import describe_machine
from benchmarks.serve import Server


class AttackedServer(Server):
    """Run the server with a heartbeat, and read what it says."""

    def __init__(self, flags: list[str]) -> None:
        with tempfile.NamedTemporaryFile(delete=False) as file:
            self._heartbeat = Path(file.name)
        os.environ["HEARTBEAT"] = file.name
        super().__init__([*flags, "--api-key", HOG, "--api-key", OTHER], module="benchmarks.attacked_server")

    def reset(self) -> None:
        """Forget what was measured."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        self._heartbeat.write_text("")
        time.sleep(0.3)

    @property
    def peak_mib(self) -> float:
        """The largest resident memory since the reset."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    @property
    def longest_holds_ms(self) -> list[float]:
        """How long the event loop was held at most since the reset, in time and in processor time."""
        return [1000 * float(word) for word in self._heartbeat.read_text().split()]


@contextlib.contextmanager
def serving(flags: list[str]) -> Iterator[AttackedServer]:
    """Run a server until the end of the block."""
    server = AttackedServer(flags)
    try:
        yield server
    finally:
        server.kill()


def measure(name: str, case: Case, seconds: float) -> dict[str, Any]:
    """Return the figures of one attack."""
    with serving(case.flags) as server:
        url = f"http://127.0.0.1:{server.port}"
        alone = Traffic(url, OTHER, seconds / 2)
        asyncio.run(case.ask(alone))
        server.reset()
        command = [sys.executable, "-m", "benchmarks.attack", "--only", name, "--seconds", str(seconds)]
        attacking = subprocess.Popen([*command, "--url", url], stdout=subprocess.PIPE)
        attacked = Traffic(url, OTHER, seconds)
        asyncio.run(case.ask(attacked))
        output, _ = attacking.communicate()
        return {
            "attack": name,
            "alone_p99_s": float(np.percentile(alone.took_s, 99)),
            "other_p50_s": float(np.median(attacked.took_s)),
            "other_p99_s": float(np.percentile(attacked.took_s, 99)),
            "peak_mib": server.peak_mib,
            "longest_holds_ms": server.longest_holds_ms,
            "other": attacked.statuses,
            "hog": json.loads(output),
            "bound": case.bound,
        }


async def attack(case: Case, url: str, seconds: float) -> None:
    """Run an attack and print the statuses of its responses."""
    traffic = Traffic(url, HOG, seconds)
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(case.make()(traffic), seconds + 2)
    print(json.dumps(traffic.statuses))


def main() -> None:
    """Run the attacks and print their figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--only", default="", help="name of an attack, or its beginning")
    parser.add_argument("--url", help="attack this server, and measure nothing")
    options = parser.parse_args()
    if options.url:
        asyncio.run(attack(CASES[options.only], options.url, options.seconds))
        return
    print(f"{describe_machine()}, {options.seconds:g} s each\n")
    print(f"{'attack':40}{'alone p99':>10}{'p50':>9}{'p99':>9}{'MiB':>8}{'loop held':>15}  other, hog")
    results = []
    for name, case in CASES.items():
        if name.startswith(options.only):
            results.append(measure(name, case, options.seconds))
            print_figures(results[-1])
    print("\n" + json.dumps({"machine": describe_machine(), "seconds": options.seconds, "attacks": results}))


def print_figures(figures: dict[str, Any]) -> None:
    """Print one line of the table."""
    waits = "".join(f"{figures[name]:7.3f} s" for name in ("alone_p99_s", "other_p50_s", "other_p99_s"))
    holds = "/".join(f"{hold:.0f}" for hold in figures["longest_holds_ms"])
    statuses = f"{dict(figures['other'])}, {figures['hog']}"
    print(f"{figures['attack']:40} {waits}{figures['peak_mib']:8.0f}{holds:>12} ms  {statuses}", flush=True)


if __name__ == "__main__":
    main()
