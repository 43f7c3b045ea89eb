"""Measure `--compile` on this machine: speed against eager in turn, time at start and memory.

    python -m benchmarks.compiled [--rounds 7] [--shapes minilm,bert-base,qwen3-small]

The bundled model, and random weights of other shapes, in float32 on a CPU. Both ways compute the same packed
batches in turn; a round takes the best of a few runs of each. Compiling is measured with an empty cache, and
again with what the first time has left there. The last line is JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.models import build_pipeline, make_backend
from benchmarks.gpu.shapes import NUM_WORDS, SPEED_SHAPES, Shape
from benchmarks.rounds import describe_machine
from benchmarks.texts import bundled_model_folder
from infinity_emb.backends.torch.backend import TorchBackend
from infinity_emb.backends.torch.compiled_layers import CompiledLayers
from infinity_emb.backends.torch.load import load_model
from infinity_emb.backends.torch.st_introspection import find_transformers
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.hardware import measure_process_memory
from infinity_emb.hub.resolve import resolve_model_files
from infinity_emb.items import Encoded
from infinity_emb.types import Device

BATCHES = {"1 x 16": [16], "50 x 19": [19] * 50, "6 x 166": [166] * 6}
_BEST_OF = 3
_BASE = next(shape for shape in SPEED_SHAPES if shape.name == "bert-base")
_QWEN = next(shape for shape in SPEED_SHAPES if shape.name == "qwen3-0.6b")
# Six layers of each kind are as telling as 28, and compiled as fast.
SHAPES: dict[str, Shape | None] = {
    "minilm": None,
    "bert-base": _BASE,
    "qwen3-small": replace(_QWEN, sizes=_QWEN.sizes | {"num_hidden_layers": 6, "vocab_size": NUM_WORDS}),
    "modernbert-base": Shape(
        name="modernbert-base",
        model_type="modernbert",
        sizes=_BASE.sizes | {"num_hidden_layers": 6, "intermediate_size": 1152, "vocab_size": NUM_WORDS},
        small_sizes=_BASE.small_sizes,
    ),
}


def main() -> None:
    """Print a row per shape and batch."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shapes", default="minilm,bert-base,qwen3-small,modernbert-base")
    options = parser.parse_args()
    print(describe_machine(), flush=True)
    results = {}
    for name in options.shapes.split(","):
        with tempfile.TemporaryDirectory() as cache:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
            results[name] = measure_shape(name, options.rounds)
        gc.collect()
    print(json.dumps({"machine": describe_machine(), "results": results}))


def measure_shape(name: str, num_rounds: int) -> dict[str, Any]:
    """Compile one model twice and measure both ways in turn; print and return the figures."""
    backend = _build(SHAPES[name])
    model = backend.torch_model.model
    layers = CompiledLayers(transformer.model for transformer in find_transformers(model))
    batches = {key: _make_batch(lengths) for key, lengths in BATCHES.items()}
    expected = backend.launch(batches["6 x 166"]).result()["dense"]
    memory = measure_process_memory().used_bytes
    first_s = _compile(backend, layers)
    added_mb = (measure_process_memory().used_bytes - memory) / 1e6
    layers = CompiledLayers(transformer.model for transformer in find_transformers(model))
    again_s = _compile(backend, layers)
    layers.enable()
    found = backend.launch(batches["6 x 166"]).result()["dense"]
    difference = float(np.abs(np.asarray(found) - np.asarray(expected)).max())
    print(
        f"{name}: compiled in {first_s:.0f} s, from the cache in {again_s:.0f} s, {added_mb:+.0f} MB,", end=""
    )
    print(f" largest difference {difference:.0e}", flush=True)
    ratios: dict[str, list[float]] = {}
    for key, batch in batches.items():
        ratios[key] = [_measure_ratio(backend, batch, layers) for _ in range(num_rounds)]
        low, high = min(ratios[key]), max(ratios[key])
        print(f"  {key}: {statistics.median(ratios[key]):.2f} ({low:.2f} to {high:.2f})", flush=True)
    layers.disable()
    return {"first_s": first_s, "again_s": again_s, "added_mb": added_mb, "ratios": ratios}


def _build(shape: Shape | None) -> TorchBackend:
    if shape is not None:
        return make_backend(build_pipeline(shape, is_small=False))[0]
    args = EngineArgs(model_name_or_path=str(bundled_model_folder()), device=Device.cpu, model_warmup=False)
    backend = load_model(args, resolve_model_files(args.model_name_or_path)).replicas[0]
    assert isinstance(backend, TorchBackend)
    return TorchBackend(backend.torch_model)


def _make_batch(lengths: list[int]) -> list[Encoded]:
    generator = np.random.default_rng(0)
    return [Encoded(generator.integers(5, NUM_WORDS, length, dtype=np.int32)) for length in lengths]


def _compile(backend: TorchBackend, layers: CompiledLayers) -> float:
    started_s = time.monotonic()
    with layers.compiling():
        for lengths in ([7, 12, 30], [9]):
            backend.launch(_make_batch(lengths)).result()
    return time.monotonic() - started_s


def _measure_ratio(backend: TorchBackend, batch: list[Encoded], layers: CompiledLayers) -> float:
    """Return the time without over the time with compiled layers."""
    eager_s = _measure_s(backend, batch, layers.disable)
    return eager_s / _measure_s(backend, batch, layers.enable)


def _measure_s(backend: TorchBackend, batch: list[Encoded], switch: Callable[[], None]) -> float:
    switch()
    times = []
    for _ in range(_BEST_OF * (10 if len(batch) == 1 else 1)):
        started_s = time.perf_counter()
        backend.launch(batch).result()
        times.append(time.perf_counter() - started_s)
    return min(times)


if __name__ == "__main__":
    torch.set_num_threads(os.cpu_count() or 1)
    main()
