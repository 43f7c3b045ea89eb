"""Measure what the last layer saves when it computes only the tokens that pooling reads.

    python -m benchmarks.last_layer [--rounds 5]

Random weights of BERT's shapes with CLS pooling; a packed batch of 512 tokens, with and without in turn, on
one core and by its processor time, so that other work on the machine says little. Prints the ratio of the
speeds, median and range over the rounds. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import BertConfig, BertModel

from benchmarks.gpu.models import make_backend, make_tokenizer
from benchmarks.rounds import describe_machine
from infinity_emb.backends.torch.backend import TorchBackend
from infinity_emb.items import Encoded

SHAPES = {"6 layers of 384": (384, 6), "12 layers of 384": (384, 12), "12 layers of 768": (768, 12)}
LENGTHS = {"short, 32 x 16": [16] * 32, "passages, 2 x 256": [256] * 2}


def main() -> None:
    """Print a row per shape and batch."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(describe_machine())
    results: dict[str, list[float]] = {}
    for name, (width, num_layers) in SHAPES.items():
        fewer = build_backend(width, num_layers)
        model = fewer.torch_model
        layout = replace(model.layouts[None], pooled_token=None)
        full = TorchBackend(replace(model, layouts={None: layout}))
        for batch_name, lengths in LENGTHS.items():
            batch = [Encoded(np.full(length, 5, dtype=np.int32)) for length in lengths]
            ratios = []
            for _ in range(options.rounds):
                seconds = [measure_s(each, batch) for each in (full, fewer)]
                ratios.append(seconds[0] / seconds[1])
            results[f"{name}, {batch_name}"] = ratios
            print(
                f"{name}, {batch_name}: {statistics.median(ratios):.3f}",
                f"({min(ratios):.3f} to {max(ratios):.3f})",
                flush=True,
            )
    print(json.dumps({"machine": describe_machine(), "ratios": results}))


def measure_s(backend: TorchBackend, batch: list[Encoded]) -> float:
    """Return the processor time of this thread for one batch, the best of two."""
    times = []
    for _ in range(2):
        started_s = time.thread_time()
        backend.launch(batch).result()
        times.append(time.thread_time() - started_s)
    return min(times)


def build_backend(width: int, num_layers: int) -> TorchBackend:
    """Build a model with CLS pooling and random weights."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=2000,
        hidden_size=width,
        num_hidden_layers=num_layers,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
    )
    with tempfile.TemporaryDirectory() as folder:
        BertModel(config).save_pretrained(folder)
        make_tokenizer(pads_left=False).save_pretrained(folder)
        transformer: Any = Transformer(str(Path(folder)))
    model = SentenceTransformer(modules=[transformer, Pooling(width, pooling_mode="cls")], device="cpu")
    backend, attention = make_backend(model.eval())
    assert "last layer" in attention, attention
    return backend


if __name__ == "__main__":
    main()
