"""What a server does with five times the load that it can bear, as ratios to its own peak in the same run.

    python -m benchmarks.overload [--rounds 3] [--seconds 20]

In turn: as many clients as keep it busy, each waiting for its answer (the peak), and then five times as many
requests a second as were answered, sent whether or not the server keeps up. Texts are real, the model is the
bundled one. The load generator shares the cores with the server. What each row means is in
docs/measurements.md.
"""

from __future__ import annotations

import argparse
import asyncio

import numpy as np
import uvloop

from benchmarks.http_load import Answer, make_requests, run_load, run_open_load
from benchmarks.rounds import Row, report
from benchmarks.serve import NUM_PASSAGES, NUM_SHORT, PASSAGES_PER_REQUEST, Server
from benchmarks.texts import bundled_model_folder, load_texts

TIMES_THE_PEAK = 5
MAX_WAIT_S = 8
# At first the queue fills, and everything is taken.
SECONDS_TO_FILL = 2 * MAX_WAIT_S


class Bench:
    """One server, and two kinds of requests."""

    def __init__(self, seconds: float) -> None:
        self.server = Server(
            ["--model-id", str(bundled_model_folder()), "--max-queue-wait-s", str(MAX_WAIT_S)]
        )
        self._seconds = seconds
        short, passages = load_texts(num_short=NUM_SHORT, num_passages=NUM_PASSAGES)
        self._kinds = {
            "passages": (self._requests(passages, PASSAGES_PER_REQUEST), 3),
            "queries": (self._requests(short, 1), 32),
        }
        self.rows = {}
        for kind, name in (("passages", "32 passages a request"), ("queries", "one query a request")):
            self.rows[f"{kind}_accepted"] = Row(f"answered at 5x the peak / peak, {name}", ">= 0.90")
            self.rows[f"{kind}_refused_ms"] = Row("    median time to a 429, ms", "milliseconds")
            self.rows[f"{kind}_refused_p99_ms"] = Row("    99th percentile of it, ms", "milliseconds")
            self.rows[f"{kind}_accepted_s"] = Row("    median time to an answer, s", f"about {MAX_WAIT_S}")

    def close(self) -> None:
        """End the server."""
        self.server.close()

    def measure(self) -> dict[str, float]:
        """One round: the value of each row."""
        values: dict[str, float] = {}
        for kind, (requests, num_clients) in self._kinds.items():
            values |= {
                f"{kind}_{name}": value for name, value in self._overload(requests, num_clients).items()
            }
        return values

    def _overload(self, requests: list[bytes], num_clients: int) -> dict[str, float]:
        took_s, _ = asyncio.run(run_load(requests, port=self.server.port, num_clients=num_clients))
        peak_per_s = len(requests) / took_s
        duration_s = self._seconds + SECONDS_TO_FILL
        answers = uvloop.run(
            run_open_load(
                requests, port=self.server.port, per_s=TIMES_THE_PEAK * peak_per_s, duration_s=duration_s
            )
        )
        strange = {each.status for each in answers} - {200, 429}
        if strange:
            raise RuntimeError(f"the server answered {strange}")
        taken = [each for each in answers if each.status == 200]
        inside = [each for each in taken if SECONDS_TO_FILL <= each.answered_s < duration_s]
        refused_s = _delays([each for each in answers if each.status == 429])
        return {
            "accepted": len(inside) / self._seconds / peak_per_s,
            "refused_ms": 1000 * float(np.median(refused_s)),
            "refused_p99_ms": 1000 * float(np.percentile(refused_s, 99)),
            "accepted_s": float(np.median(_delays(inside))),
        }

    def _requests(self, texts: list[str], per_request: int) -> list[bytes]:
        return make_requests(texts, per_request=per_request, port=self.server.port, encoding_format="base64")


def _delays(answers: list[Answer]) -> list[float]:
    return [each.answered_s - each.sent_s for each in answers]


def main() -> None:
    """Print a table, and the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20)
    options = parser.parse_args()
    report(Bench(options.seconds), options.rounds, about=f"{options.rounds} rounds")


if __name__ == "__main__":
    main()
