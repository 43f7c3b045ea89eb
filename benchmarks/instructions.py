"""Count the processor instructions of one request to `/v1/embeddings`, in this tree and in other checkouts.

    python -m benchmarks.instructions [--checkout ../base]

Valgrind counts them, so that other work on the machine does not matter: one run is enough. The app of
`create_server` runs in process with the fake engine, whose own work is included; sockets and the HTTP parser
are not. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.rounds import Row, print_rows, summarize_rows
from scripts.asgi_client import AsgiApp, Lifespan, post_json

ROOT = Path(__file__).resolve().parents[1]
TEXT = "the vector that an embedding model returns for text number"
# Python's `os.getpgid` calls it, and nothing else in a server does: it marks where a count begins and ends.
MARK = "getpgid"


class Workload(NamedTuple):
    """Describe requests that are counted together."""

    about: str
    num_inputs: int
    words: int = 12
    num_clients: int = 1
    num_requests: int = 32
    options: Mapping[str, str] = {}

    def make_body(self, number: int) -> dict[str, Any]:
        """Return the body of a request; no text is sent twice."""
        words = (TEXT.split() * self.words)[: self.words]
        inputs = [" ".join([*words, str(number), str(index)]) for index in range(self.num_inputs)]
        return {"model": "debug", "input": inputs, **self.options}


WORKLOADS = {
    "one": Workload("one input", 1),
    "clients": Workload("one input, 32 clients", 1, num_clients=32, num_requests=64),
    "short": Workload("32 short texts", 32, num_requests=6),
    "passages": Workload("32 passages", 32, words=100, num_requests=6),
    "base64": Workload(
        "32 passages, base64", 32, words=100, num_requests=6, options={"encoding_format": "base64"}
    ),
}


async def send_all(app: AsgiApp, workload: Workload, *, first_number: int, num_requests: int) -> None:
    """Send requests from all clients of a workload. Raises RuntimeError where one fails."""

    async def send_some(client: int) -> None:
        for number in range(client, num_requests, workload.num_clients):
            status, body = await post_json(app, "/v1/embeddings", workload.make_body(first_number + number))
            if status != 200:
                raise RuntimeError(f"{status}: {body[:200]!r}")

    await asyncio.gather(*map(send_some, range(workload.num_clients)))


async def run_counted(checkout: str) -> None:
    """Run all workloads with the package of a checkout, each between two marks."""
    sys.path.insert(0, checkout)
    from infinity_emb import EngineArgs
    from infinity_emb.server.app import create_server

    args = EngineArgs(model_name_or_path="debug", engine="debugengine", served_model_name="debug")  # type: ignore[arg-type]
    app = create_server(engine_args_list=[args])
    async with Lifespan(app):
        for workload in WORKLOADS.values():
            await send_all(app, workload, first_number=1_000, num_requests=2 * workload.num_clients)
            os.getpgid(0)
            await send_all(app, workload, first_number=0, num_requests=workload.num_requests)
            os.getpgid(0)
        os._exit(0)  # what stopping takes is not asked for


def count_instructions(checkout: Path) -> Mapping[str, float]:
    """Return the thousands of instructions of a request, of each workload."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [
                "valgrind",
                "--tool=callgrind",
                f"--dump-before={MARK}",
                f"--callgrind-out-file={folder}/counts",
                *(sys.executable, "-m", "benchmarks.instructions", "--counted", str(checkout)),
            ],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": "0", "INFINITY_HOME": folder},
            stdout=subprocess.DEVNULL,
            check=True,
            timeout=1200,
        )
        # A dump has what was counted since the one before: every second one has a workload.
        dumps = [Path(folder, f"counts.{2 * number}") for number in range(1, len(WORKLOADS) + 1)]
        totals = [_read_total(dump.read_text()) for dump in dumps]
    return {
        name: total / workload.num_requests / 1000
        for (name, workload), total in zip(WORKLOADS.items(), totals, strict=True)
    }


def _read_total(dump: str) -> int:
    return int(re.findall(r"^(?:summary|totals): (\d+)", dump, re.MULTILINE)[-1])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkout", type=Path, help="another checkout to compare with")
    parser.add_argument("--counted", metavar="CHECKOUT", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.counted:
        asyncio.run(run_counted(options.counted))
    if shutil.which("valgrind") is None:
        print("skipped: valgrind is not installed (Debian: apt-get install valgrind)")
        return 0
    here = count_instructions(ROOT)
    base = count_instructions(options.checkout.resolve()) if options.checkout else {}
    rows = {}
    for name, workload in WORKLOADS.items():
        rows[name] = Row(f"thousand instructions per request, {workload.about}", "", [here[name]])
        if base:
            rows[f"{name}_ratio"] = Row("  compared with the checkout", "<= 1.00", [here[name] / base[name]])
    print_rows(rows)
    print("\n" + json.dumps({"ratios": summarize_rows(rows)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
