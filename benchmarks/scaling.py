"""Compare the arithmetic of docs/scaling.md with a simulation that has measured service times.

python -m benchmarks.scaling
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np

from benchmarks.capacity import estimate_batch_tokens, estimate_busy_ratio, fit_service_time
from benchmarks.queue_simulation import Balancing, Load, simulate

# Tokens a batch → tokens per second of two replicas, short texts: docs/measurements.md, 2026-11-22.
RATES = {128: 5_700, 256: 6_600, 512: 6_800, 1024: 7_200}
MEASURED = fit_service_time(list(RATES), [2 * tokens / rate for tokens, rate in RATES.items()])
# Requests of the simulation: queries, and lists of passages.
LENGTHS = (12, 16, 20, 24, 150, 300, 700)
BUDGET = 1024
NUM_REPLICAS = 4
BALANCINGS: tuple[Balancing, ...] = ("one queue", "least outstanding", "round robin")


def main() -> None:
    """Print the table of docs/scaling.md and a line of JSON."""
    print("| load | queues | busy: bound, simulated | tokens a batch: estimated, simulated | median, p99 |")
    print("|---|---|---|---|---|")
    for row in compare_with_simulation():
        print(row)
    figures = {"batch_s": MEASURED.batch_s, "token_s": MEASURED.token_s}
    print(json.dumps(figures | {"tokens_per_s": MEASURED.tokens_per_s(BUDGET)}))


def compare_with_simulation() -> Iterator[str]:
    """Yield rows of the arithmetic beside what the simulation finds."""
    mean_tokens = float(np.mean(LENGTHS))
    for share in (0.5, 0.7, 0.9):
        tokens_per_s = share * MEASURED.tokens_per_s(BUDGET) * NUM_REPLICAS
        busy = estimate_busy_ratio(
            tokens_per_s, MEASURED, num_replicas=NUM_REPLICAS, request_tokens=mean_tokens
        )
        batch = estimate_batch_tokens(
            tokens_per_s, MEASURED, num_replicas=NUM_REPLICAS, request_tokens=mean_tokens, max_tokens=BUDGET
        )
        load = Load(tokens_per_s=tokens_per_s, request_tokens=LENGTHS)
        for balancing in BALANCINGS:
            found = simulate(
                load, MEASURED, num_replicas=NUM_REPLICAS, max_tokens=BUDGET, balancing=balancing
            )
            yield (
                f"| {share:.0%} | {balancing} | {busy:.2f}, {found.busy_ratio:.2f} |"
                f" {batch:.0f}, {found.batch_tokens:.0f} | {found.median_s:.2f}, {found.p99_s:.2f} s |"
            )


if __name__ == "__main__":
    main()
