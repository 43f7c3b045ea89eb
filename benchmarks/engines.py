"""Every engine that computes the default model here, side by side, as ratios to SentenceTransformer.encode.

    python -m benchmarks.engines [--rounds 5]

Short texts and passages; each engine has a process of its own, and all take turns as in `benchmarks.serve`.
An engine whose library is not installed is left out. The last line is JSON.
"""

from __future__ import annotations

import argparse
import importlib.util

from benchmarks.peers import Peer
from benchmarks.rounds import Row, report
from benchmarks.texts import bundled_model_folder, load_texts

# Engine → the library that it needs.
ENGINES = {"torch": "torch", "optimum": "onnxruntime"}


class Bench:
    """The peers, and the rounds in which they take turns."""

    def __init__(self) -> None:
        model = str(bundled_model_folder())
        short, passages = load_texts(num_short=512, num_passages=128)
        self.texts = {"short texts": short, "passages": passages}
        self.reference = Peer("sentence-transformers", model)
        self.engines = {
            name: Peer("engine", model, engine=name, device="cpu")
            for name, library in ENGINES.items()
            if importlib.util.find_spec(library) is not None
        }
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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    report(Bench(), rounds)


if __name__ == "__main__":
    main()
