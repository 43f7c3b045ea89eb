"""Measure what layers of BERT gain when they are computed with fewer operators.

    python -m benchmarks.post_norm_layers [--rounds 60]

Random weights of BERT's shapes; batches of one text on two cores, and of several on one, with the layers of
transformers and with ours in turn. Prints how many times as fast ours are: the median over the rounds, and
the quartiles. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch

from benchmarks.last_layer import SHAPES, build_backend
from benchmarks.rounds import describe_machine
from infinity_emb.backends.torch import post_norm_layers
from infinity_emb.backends.torch.backend import TorchBackend
from infinity_emb.backends.torch.st_introspection import find_transformers
from infinity_emb.items import Encoded

# Lengths of the texts, and the number of cores.
BATCHES = {
    "a lone query": ([17], 2),
    "14 queries": (list(range(12, 26)), 1),
    "6 passages": ([120, 140, 160, 170, 200, 230], 1),
}


def main() -> None:
    """Print a row per shape and batch."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    print(describe_machine())
    results: dict[str, list[float]] = {}
    for shape, (width, num_layers) in SHAPES.items():
        backend = build_backend(width, num_layers)
        for name, (lengths, num_cores) in BATCHES.items():
            torch.set_num_threads(num_cores)
            batch = [Encoded(np.full(length, 5, dtype=np.int32)) for length in lengths]
            ratios = [measure_gain(backend, batch) for _ in range(options.rounds)]
            low, median, high = np.quantile(ratios, [0.25, 0.5, 0.75])
            results[f"{shape}, {name}"] = [median, low, high]
            print(f"{shape}, {name}: {median:.2f} ({low:.2f} to {high:.2f})", flush=True)
    print(json.dumps({"machine": describe_machine(), "gains": results}))


def measure_gain(backend: TorchBackend, batch: list[Encoded]) -> float:
    """Return the time with the layers of transformers divided by the time with ours."""
    (transformer,) = find_transformers(backend.torch_model.model)
    network = transformer.model
    post_norm_layers.uninstall(network)
    plain_s = measure_s(backend, batch)
    post_norm_layers.install(network)
    return plain_s / measure_s(backend, batch)


def measure_s(backend: TorchBackend, batch: list[Encoded]) -> float:
    """Return the time of one batch after another one, whose weights the caches hold as under load."""
    backend.launch(batch).result()
    started_s = time.perf_counter()
    backend.launch(batch).result()
    return time.perf_counter() - started_s


if __name__ == "__main__":
    main()
