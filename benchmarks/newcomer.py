"""Measure the time from `git clone` to the first vector by the README's commands, and what it is spent on.

    python -m benchmarks.newcomer [--starts 3] [--keep FOLDER]

Clones the newest commit of this checkout, with an empty home folder and no cache of pip. `make` creates the
environment, and the README's curl is repeated until it is answered. The first start finds no caches; others
follow it, and one more with the time of each import. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.http_load import find_free_port
from benchmarks.rounds import describe_machine

REPOSITORY = Path(__file__).resolve().parents[1]
PORT_OF_THE_README = "7997"
ANSWER_TIMEOUT_S = 300.0
# Variables that are passed on; those of pip say where packages come from.
KEPT = re.compile(r"PATH|LANG|TERM|TMPDIR|.*_proxy|.*CERT.*|.*CA_BUNDLE|PIP_.*", re.IGNORECASE)
NUM_PACKAGES = 12
_IMPORT = re.compile(r"^import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", re.MULTILINE)


class Start(NamedTuple):
    """What one start of the server took, in seconds.

    answered_s: from the command to the vectors of the README's curl.
    first_vector_s: as the server says, from the start of its process.
    load_s: stage of the load → seconds.
    import_ms: package → milliseconds of its modules alone.
    """

    answered_s: float
    first_vector_s: float
    load_s: Mapping[str, float]
    import_ms: Mapping[str, float]


def main() -> None:
    """Run a newcomer's commands and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--starts", type=int, default=3, help="after the first one [3]")
    parser.add_argument("--keep", metavar="FOLDER", help="clone to this folder, and leave it there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.keep or temporary)
        checkout, environ = folder / "checkout", make_environ(folder / "home")
        steps = {
            "git clone": time_command(
                ["git", "clone", "--quiet", REPOSITORY.as_uri(), str(checkout)], environ
            )
        }
        install = ["make", "-C", str(checkout), ".venv/served", f"PYTHON={sys.executable}"]
        steps["make the environment"] = time_command(install, environ)
        first, *later = [start_server(checkout, environ) for _ in range(1 + options.starts)]
        imports = start_server(checkout, environ | {"PYTHONPROFILEIMPORTTIME": "1"}).import_ms
    steps["first start to the answer of curl"] = first.answered_s
    steps["a later start to the answer of curl"] = statistics.median(
        each.answered_s for each in later or [first]
    )
    print_report(steps, first, later or [first], imports)


def make_environ(home: Path) -> dict[str, str]:
    """Return the environment of somebody who has just installed git, make and Python."""
    home.mkdir(parents=True)
    config = Path.home() / ".config/pip/pip.conf"
    kept = {name: value for name, value in os.environ.items() if KEPT.fullmatch(name)}
    sources = {"PIP_CONFIG_FILE": str(config)} if config.exists() else {}
    return {**kept, **sources, "HOME": str(home), "PIP_NO_CACHE_DIR": "1"}


def time_command(command: Sequence[str], environ: Mapping[str, str]) -> float:
    """Run a command and return its seconds."""
    started_s = time.perf_counter()
    subprocess.run(command, check=True, env=environ, stdout=sys.stderr)
    return time.perf_counter() - started_s


def start_server(checkout: Path, environ: Mapping[str, str]) -> Start:
    """Serve by `make run` until the README's curl has its vectors."""
    port = str(find_free_port())
    curl = read_curl(checkout).replace(PORT_OF_THE_README, port)
    arguments = f"ARGS=--host 127.0.0.1 --port {port} --log-format json"
    log = checkout.parent / "log"
    started_s = time.perf_counter()
    with log.open("w") as file:
        server = subprocess.Popen(
            ["make", "-C", str(checkout), "run", arguments], env=environ, stderr=file, start_new_session=True
        )
    try:
        wait_for_vectors(curl, server, started_s + ANSWER_TIMEOUT_S)
        answered_s = time.perf_counter() - started_s
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)
    text = log.read_text()
    summary = find_summary(text)
    return Start(answered_s, summary["first_vector_s"], summary["load_s"], add_up_imports(text))


def read_curl(checkout: Path) -> str:
    """Return the README's first command for the shell."""
    [command] = re.findall(
        r"^```sh\n(curl .*?)^```", (checkout / "README.md").read_text(), re.DOTALL | re.MULTILINE
    )[:1]
    return str(command)


def wait_for_vectors(curl: str, server: subprocess.Popen[bytes], deadline_s: float) -> None:
    """Repeat the command until it prints vectors."""
    while time.perf_counter() < deadline_s and server.poll() is None:
        done = subprocess.run(["sh", "-c", curl], capture_output=True, text=True, timeout=60, check=False)
        if '"embedding"' in done.stdout:
            return
        time.sleep(0.02)
    raise RuntimeError("the server did not answer")


def find_summary(log: str) -> Any:
    """Return what the server has written about its start."""
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    [summary] = [line["summary"] for line in lines if "summary" in line]
    return summary


def add_up_imports(log: str) -> dict[str, float]:
    """Return package → milliseconds of its modules, from what `python -X importtime` writes."""
    us: Counter[str] = Counter()
    for own_us, module in _IMPORT.findall(log):
        us[module.partition(".")[0]] += int(own_us)
    return {name: value / 1000 for name, value in us.most_common()}


def print_report(
    steps: Mapping[str, float], first: Start, later: Sequence[Start], import_ms: Mapping[str, float]
) -> None:
    """Print the tables and the JSON line."""
    print(f"\n{describe_machine()}\n")
    print_rows(("step", "s"), ((name, f"{seconds:.1f}") for name, seconds in steps.items()))
    median = {
        stage: statistics.median(each.load_s.get(stage, 0.0) for each in later) for stage in later[0].load_s
    }
    rows = [
        (stage, f"{first.load_s.get(stage, 0.0):.2f}", f"{seconds:.2f}") for stage, seconds in median.items()
    ]
    whole = statistics.median(each.first_vector_s for each in later)
    rest = (first.first_vector_s - sum(first.load_s.values()), whole - sum(median.values()))
    rows.append(("before and after the load", f"{rest[0]:.2f}", f"{rest[1]:.2f}"))
    print_rows(("a start spends, s", "first", "later"), rows)
    listed = list(import_ms.items())
    others = sum(ms for _, ms in listed[NUM_PACKAGES:])
    rows_of_imports = [*listed[:NUM_PACKAGES], (f"{max(0, len(listed) - NUM_PACKAGES)} others", others)]
    print_rows(("imports of a later start, ms", ""), ((name, f"{ms:.0f}") for name, ms in rows_of_imports))
    starts = {"first": first._asdict(), "later": [each._asdict() for each in later]}
    print(
        json.dumps(
            {"machine": describe_machine(), "steps_s": steps, **starts, "import_ms": dict(rows_of_imports)}
        )
    )


def print_rows(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table of a name and figures."""
    for name, *figures in [heading, *rows]:
        print(f"{name:<40}" + "".join(f"{each:>10}" for each in figures))
    print()


if __name__ == "__main__":
    main()
