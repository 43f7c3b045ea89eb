"""Measure how long the event loop would wait for the interpreter lock while a thread parses one large body.

    python -m benchmarks.held_lock [--only NAME]

The longest time between two steps of a thread that sleeps a fifth of a millisecond, and the time that the
work took, in milliseconds: to parse a body of about 31 MB, to measure what it holds, and to validate it.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.rounds import describe_machine
from infinity_emb.cli.serve import SWITCH_INTERVAL_S
from infinity_emb.server.requests.json_body import fit_schema, parse_json
from infinity_emb.server.requests.memory import measure_fields
from infinity_emb.server.schemas.embeddings import EmbeddingRequest

SIZE = 31_000_000
WIDE_SIZE = 2**24 - 100


def text(unit: str, size: int = SIZE, end: str = "") -> bytes:
    """Return a body with one text: a unit again and again, and an end."""
    return b'{"input": "%b"}' % (unit * (size // len(unit.encode())) + end).encode()


def values(unit: str, number: int) -> bytes:
    """Return a body with a list of equal values."""
    return b'{"input": [%b]}' % ",".join([unit] * number).encode()


def members(number: int, num_digits: int) -> bytes:
    """Return a body with many members."""
    names = (f'"{each:0{num_digits}}": 1' for each in range(number))
    return b'{"input": "a", %b}' % ",".join(names).encode()


BODIES: dict[str, Callable[[], bytes]] = {
    "ASCII": lambda: text("a"),
    "ASCII with one \u00e9": lambda: text("a", end="\u00e9"),
    "ASCII with one \u4e2d": lambda: text("a", end="\u4e2d"),
    "\u00e9": lambda: text("\u00e9"),
    "\u4e2d": lambda: text("\u4e2d"),
    "16 MB with one emoji": lambda: text("a", WIDE_SIZE, "\U0001f600"),
    "16 MB of emoji": lambda: text("\U0001f600", WIDE_SIZE),
    "31 MB with one emoji, refused": lambda: text("a", end="\U0001f600"),
    r"\u0061": lambda: text(r"\u0061"),
    r"\u4e2d": lambda: text(r"\u4e2d"),
    r"\\": lambda: text(r"\\"),
    r"\n": lambda: text(r"\n"),
    r"\"": lambda: text(r"\""),
    r"16 MB of \u0061 with half a pair": lambda: text(r"\u0061", WIDE_SIZE - 10, r"\ud83d"),
    "UTF-16": lambda: text("a", SIZE // 2).decode().encode("utf-16"),
    "UTF-32": lambda: text("\u4e2d", SIZE * 3 // 4).decode().encode("utf-32"),
    "260,000 texts": lambda: values('"a\u00e9"', 260_000),
    "a million integers": lambda: values("12345", 2**20 - 10),
    "a million fractions": lambda: values("1.2345678901234567e-5", 2**20 - 10),
    "131,000 lists": lambda: values("[1]", 2**17 - 10),
    "131,000 objects": lambda: values('{"text": "a"}', 2**17 - 10),
    "131,000 members": lambda: members(2**17 - 10, 200),
    "a name of 31 MB": lambda: b'{"input": "a", "%b": 1}' % (b"a" * SIZE),
    "spaces": lambda: b'{"input": "a"%b}' % (b" " * SIZE),
    "one number, refused": lambda: b'{"input": %b}' % (b"9" * SIZE),
}


class Held(NamedTuple):
    """How long another thread waited at most, how long the work took, and what it returned or raised."""

    longest_s: float
    total_s: float
    result: Any


def measure(work: Callable[[], object]) -> Held:
    """Run the work on a thread, and note when this one gets the interpreter lock."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as exc:  # noqa: BLE001 - bodies that are refused are measured too
            results.append(exc)

    thread = threading.Thread(target=run)
    longest_s, started_s = 0.0, time.perf_counter()
    last_s = started_s
    thread.start()
    while thread.is_alive():
        time.sleep(0.0002)
        now_s = time.perf_counter()
        longest_s, last_s = max(longest_s, now_s - last_s), now_s
    return Held(longest_s, last_s - started_s, results[0])


def measure_body(raw: bytes) -> dict[str, Held]:
    """Measure each step of a body, until it is refused."""
    held = {"parse": measure(lambda: parse_json(raw))}
    fields = held["parse"].result
    if isinstance(fields, dict):
        held["measure"] = measure(lambda: measure_fields(fields, len(raw)))
        held["validate"] = measure(lambda: fit_schema(EmbeddingRequest, fields))
    return held


def main() -> None:
    """Print a line for each body, and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="a part of the name of a body")
    options = parser.parse_args()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.collect()
    gc.freeze()
    figures: dict[str, dict[str, tuple[float, float]]] = {}
    for name, make in BODIES.items():
        if options.only in name:
            held = measure_body(make())
            figures[name] = {
                step: (1000 * each.longest_s, 1000 * each.total_s) for step, each in held.items()
            }
            steps = "   ".join(
                f"{step} {longest:4.0f} of {total:4.0f}" for step, (longest, total) in figures[name].items()
            )
            print(f"{name:36}{steps}", flush=True)
    print("\n" + json.dumps({"machine": describe_machine(), "ms": figures}))


if __name__ == "__main__":
    main()
