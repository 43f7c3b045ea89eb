"""Every engine that computes the default model here, side by side, as ratios to SentenceTransformer.encode.

    python -m benchmarks.engines [--rounds 5] [--engines torch,torch-int8,optimum] [--device cuda]

Short texts and passages; each engine, in each number format (`benchmarks/variants.py`), has a process of its
own, and all take turns as in `benchmarks.serve`. An engine whose library is not installed is left out, and
so is a number format that it does not serve here. The last line is JSON.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from benchmarks.peers import Peer
from benchmarks.rounds import Row, report
from benchmarks.texts import bundled_model_folder, load_texts
from benchmarks.variants import Variant, installed


class Bench:
    """The peers, and the rounds in which they take turns."""

    def __init__(self, variants: list[Variant], device: str) -> None:
        model = str(bundled_model_folder())
        short, passages = load_texts(num_short=512, num_passages=128)
        self.texts = {"short texts": short, "passages": passages}
        self.reference = Peer("sentence-transformers", model, device=device)
        self.engines = dict(_start(variants, model, device))
        self.rows = {
            f"{name}, {kind}": Row(f"{name} / SentenceTransformer.encode, {kind}", "")
            for kind in self.texts
            for name in self.engines
        }

    def close(self) -> None:
        """End all processes."""
        for peer in (self.reference, *self.engines.values()):
            peer.close()

    def measure(self) -> dict[str, float]:
        """One round: the value of each row."""
        values = {}
        for kind, texts in self.texts.items():
            reference_s = self.reference.ask("embed", texts=texts)["s"]
            for name, peer in self.engines.items():
                values[f"{name}, {kind}"] = reference_s / peer.ask("embed", texts=texts)["s"]
        return values


def _start(variants: list[Variant], model: str, device: str) -> Iterator[tuple[str, Peer]]:
    for variant in variants:
        try:
            peer = Peer("engine", model, engine=variant.engine, dtype=variant.dtype, device=device)
        except RuntimeError:
            print(f"{variant.name} is left out: it does not start here")
            continue
        if peer.ready["dtype"] == variant.dtype:
            yield variant.name, peer
        else:
            print(f"{variant.name} is left out: it is served in {peer.ready['dtype']} here")
            peer.close()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engines", default="", help="Only these.")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    report(Bench(installed(given.engines, given.device), given.device), given.rounds)


if __name__ == "__main__":
    main()
