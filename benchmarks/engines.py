"""Measure every installed engine with the default model, as ratios to SentenceTransformer.encode.

    python -m benchmarks.engines [--rounds 5] [--engines torch,torch-int8,optimum] [--device cuda]

Workloads: short texts and passages. Each engine runs in its own process, once per dtype
(`benchmarks/variants.py`); all take turns as in `benchmarks.serve`. Engines that are not installed and dtypes
that an engine does not serve on this machine are skipped. The last line is JSON.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from benchmarks.rounds import Row, report
from benchmarks.subjects import Peer
from benchmarks.texts import bundled_model_folder, load_texts
from benchmarks.variants import Variant, select_variants


class Bench:
    """Hold the peers and run the rounds."""

    def __init__(self, variants: list[Variant], device: str) -> None:
        model = str(bundled_model_folder())
        short, passages = load_texts(num_short=512, num_passages=128)
        self.texts = {"short texts": short, "passages": passages}
        self.reference = Peer("sentence-transformers", model, device=device)
        self.engines = dict(_start_peers(variants, model, device))
        self.rows = {
            f"{name}, {kind}": Row(f"{name} / SentenceTransformer.encode, {kind}", "")
            for kind in self.texts
            for name in self.engines
        }

    def close(self) -> None:
        """Stop all processes."""
        for peer in (self.reference, *self.engines.values()):
            peer.close()

    def measure(self) -> dict[str, float]:
        """Run one round and return the value of each row."""
        values = {}
        for kind, texts in self.texts.items():
            reference_s = self.reference.ask("embed", texts=texts)["s"]
            for name, peer in self.engines.items():
                values[f"{name}, {kind}"] = reference_s / peer.ask("embed", texts=texts)["s"]
        return values


def _start_peers(variants: list[Variant], model: str, device: str) -> Iterator[tuple[str, Peer]]:
    for variant in variants:
        try:
            peer = Peer("engine", model, engine=variant.engine, dtype=variant.dtype, device=device)
        except RuntimeError:
            print(f"{variant.name} is skipped: it does not start on this machine")
            continue
        if peer.ready["dtype"] == variant.dtype:
            yield variant.name, peer
        else:
            print(f"{variant.name} is skipped: this machine serves {peer.ready['dtype']} instead")
            peer.close()


def main() -> None:
    """Run the rounds and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engines", default="", help="names separated by commas (default: all)")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    report(Bench(select_variants(options.engines, options.device), options.device), options.rounds)


if __name__ == "__main__":
    main()
