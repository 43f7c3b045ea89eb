"""Compile the layers of a replica at start, and keep them if they are as good and faster.

Outputs with compiled layers are compared with those without by the rule of `backends/closeness.py`, and the
speeds of both are measured in turn.
"""

from __future__ import annotations

import functools
import logging
import statistics
import time
from collections.abc import Callable, Sequence

from infinity_emb.backends.probes import fill_batch, measure_rates, measure_tokens_per_s
from infinity_emb.backends.torch.backend import TorchBackend
from infinity_emb.backends.torch.compiled_layers import CompiledLayers, Compiler
from infinity_emb.backends.torch.device import is_cpu
from infinity_emb.backends.torch.eager_outputs import EagerOutputs, Score, compute_entries
from infinity_emb.backends.torch.packed_attention import VARLEN
from infinity_emb.backends.torch.st_introspection import find_transformers
from infinity_emb.backends.warmup import DEFAULT_BATCH_TOKENS, get_device_kind
from infinity_emb.errors import one_line
from infinity_emb.items import Encoded

logger = logging.getLogger("infinity_emb")

# Compiled layers must be faster for most kinds of batch (noise may favour one), and not slower for any.
_MIN_MEDIAN_GAIN, _MIN_GAIN = 1.05, 0.98
_MIN_ROUNDS, _MAX_ROUNDS, _DEADLINE_S = 3, 8, 5.0
_MIN_DURATION_S = 0.02


def compile_layers(
    backend: TorchBackend,
    samples: Sequence[Sequence[Encoded]],
    score: Score,
    compiler: Compiler = "inductor",
) -> bool:
    """Compile the layers, and return whether they are used from now on; log why.

    samples: texts for each spec that texts have, short and long ones.
    score: outputs → the scores by which clients decide.
    """
    started_s = time.monotonic()
    layers = CompiledLayers(
        (transformer.model for transformer in find_transformers(backend.torch_model.model)), compiler
    )
    refusal = _find_obstacle(backend, samples, layers) or _compile(backend, samples, score, layers)
    if refusal:
        layers.disable()
        logger.warning("--compile has no effect: %s", refusal)
        return False
    compiled_s = time.monotonic() - started_s
    gains = _measure_gains(backend, samples[0], layers)
    found = ", ".join(f"{gain:.2f} times as fast for {name}" for name, gain in gains.items())
    if min(gains.values()) < _MIN_GAIN or statistics.median(gains.values()) < _MIN_MEDIAN_GAIN:
        layers.disable()
        logger.warning("--compile has no effect: compiled layers gain too little (%s)", found)
        return False
    layers.enable()
    logger.info("compiled %d layers in %.0f s: %s", len(layers), compiled_s, found)
    return True


def _find_obstacle(
    backend: TorchBackend, samples: Sequence[Sequence[Encoded]], layers: CompiledLayers
) -> str:
    model = backend.torch_model
    if not samples or any(model.get_layout(each[0].spec).form != "packed" for each in samples):
        return "the model's inputs are not packed"
    if not layers:
        return "the model has no layers that can be compiled"
    if not is_cpu(model.model.device) and model.attention_kernels != {VARLEN}:
        return "it needs attention in one kernel, which takes half precision only"
    return ""


def _compile(
    backend: TorchBackend, samples: Sequence[Sequence[Encoded]], score: Score, layers: CompiledLayers
) -> str:
    """Compile the layers, compare their outputs and switch them on; return why they cannot be used, or ""."""
    backend.prepare_thread()
    for items in samples:
        eager = EagerOutputs(backend, items, score)
        try:
            with layers.compiling():
                for batch in _list_first_batches(items):
                    backend.launch(batch).result()
            layers.enable()
            found = compute_entries(backend, items, len(items))
        except Exception as exc:  # noqa: BLE001 - compilers, and whatever they cannot compile, may raise anything
            return f"{type(exc).__name__}: {one_line(exc, 300)}"
        finally:
            layers.disable()
        objection = eager.find_objection(found)
        if objection:
            return f"its output {objection}"
    layers.enable()
    return ""


def _list_first_batches(items: Sequence[Encoded]) -> list[list[Encoded]]:
    """Return one batch of several texts of different lengths, and one of a single text.

    The number 1 is special to torch.compile; all other numbers share the code.
    """
    ascending = sorted(items, key=lambda item: len(item.token_ids))
    several = [ascending[0], ascending[len(ascending) // 2], *ascending[-2:]]
    return [several, [ascending[len(ascending) // 2]]]


def _measure_gains(
    backend: TorchBackend, items: Sequence[Encoded], layers: CompiledLayers
) -> dict[str, float]:
    """Return how many times as fast the compiled layers are, for each kind of batch."""
    ascending = sorted(items, key=lambda item: len(item.token_ids))
    num_tokens = DEFAULT_BATCH_TOKENS[get_device_kind(str(backend.torch_model.model.device))]
    half = len(ascending) // 2
    batches = {
        "a short text": [ascending[half // 2]],
        "short texts": fill_batch(ascending[:half], num_tokens),
        "passages": fill_batch(ascending[-max(1, len(ascending) // 8) :], num_tokens),
    }

    def measure(batch: list[Encoded], switch: Callable[[], None]) -> float:
        switch()
        backend.launch(batch).result()  # the caches are filled by the same code
        return measure_tokens_per_s(
            backend, batch, num_in_flight=backend.num_in_flight, min_duration_s=_MIN_DURATION_S
        )

    rates = measure_rates(
        {
            (name, switch): functools.partial(measure, batch, switch)
            for name, batch in batches.items()
            for switch in (layers.disable, layers.enable)
        },
        max_rounds=_MAX_ROUNDS,
        min_rounds=_MIN_ROUNDS,
        deadline_s=time.monotonic() + _DEADLINE_S,
    )
    return {name: rates[name, layers.enable] / rates[name, layers.disable] for name in batches}
