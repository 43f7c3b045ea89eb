"""Estimate on paper how fast the CUDA path is on one H200: `make bench-roofline`.

The backend launches a batch on the emulated device of `benchmarks/gpu/emulated_cuda.py`, with models of
real sizes on the meta device: no weights, no GPU. Each kernel costs the larger of its arithmetic and its
traffic; launches cost the host. Views cost nothing, and copies overlap: speeds are upper bounds.

With `--compile`, the layers' kernels are those that Inductor would fuse on an H200
(`benchmarks/gpu/fused_layers.py`), each of which reads and writes every buffer once, at the full rate of the
memory. Products and attention cost the same as in eager mode. Nothing of this has run on a GPU.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import AutoConfig, AutoModel

from benchmarks.gpu.emulated_cuda import DEVICE, EmulatedTensor, Launch, Log, emulate_cuda, record
from benchmarks.gpu.fused_layers import ATTENTION, PRODUCTS, FusingCompiler
from benchmarks.gpu.models import make_tokenizer
from infinity_emb.backends.torch import fused_norms, fused_products, last_layer, packed_attention
from infinity_emb.backends.torch.backend import TorchBackend
from infinity_emb.backends.torch.compiled_layers import CompiledLayers
from infinity_emb.backends.torch.forward import TorchModel
from infinity_emb.backends.torch.module_classes import set_classes
from infinity_emb.backends.torch.packing import get_padded_layout, install_packing
from infinity_emb.items import Encoded

# One H200. Its data sheet (nvidia.com/en-us/data-center/h200) gives 989 TFLOP/s of dense bf16 and 4.8 TB/s.
# Assumed here: 80 % of the former in matrix products, 83 % of the latter, and 400 TFLOP/s in attention.
MATRIX_FLOPS = 790e12
ATTENTION_FLOPS = 400e12
BYTES_PER_S = 4.0e12
LAUNCH_S = 6e-6  # of the host, for an operator of torch in eager mode; assumed for Inductor's kernels as well
# Of the host, for a compiled layer; checking whether the code fits the arguments was 40 to 50 µs on a CPU.
COMPILED_CALL_S = 60e-6

_BERT = {"vocab_size": 30_522}
MODELS: dict[str, tuple[str, dict[str, Any], str]] = {
    "MiniLM-L6": ("bert", _BERT | {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12,
                                   "intermediate_size": 1536}, "mean"),
    "BERT-base": ("bert", _BERT, "mean"),
    "BERT-base, CLS": ("bert", _BERT, "cls"),
    "BERT-large": ("bert", _BERT | {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
                                    "intermediate_size": 4096}, "mean"),
    "ModernBERT-base": ("modernbert", {"num_hidden_layers": 22}, "mean"),
    "ModernBERT-base, CLS": ("modernbert", {"num_hidden_layers": 22}, "cls"),
    "Qwen3-0.6B": ("qwen3", {"vocab_size": 151_669, "hidden_size": 1024, "num_hidden_layers": 28,
                             "intermediate_size": 3072, "num_attention_heads": 16, "num_key_value_heads": 8,
                             "head_dim": 128}, "lasttoken"),
}  # fmt: skip
BATCHES = {"1 x 16": [16], "64 x 16": [16] * 64, "32 x 128": [128] * 32, "32 x 512": [512] * 32}
# What is asked of texts of 512 tokens, in million tokens per second.
AIMS = {
    "BERT-base": 3.0,
    "BERT-base, CLS": 3.0,
    "ModernBERT-base": 2.4,
    "ModernBERT-base, CLS": 2.4,
    "Qwen3-0.6B": 0.65,
}
_AIMED_BATCH = "32 x 512"
# As `layer_compilation.py`: several texts, and one.
_FIRST_BATCHES = ([7, 12, 30, 30], [12])
_SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


from_config: Any = AutoModel.from_config  # it has no annotation


def build_backend(name: str) -> TorchBackend:
    """Build the backend of a model on the emulated device, in bfloat16, without weights."""
    model_type, values, pooling = MODELS[name]
    packed_attention.register()
    with tempfile.TemporaryDirectory() as folder:
        small = values | _SMALL | {"num_key_value_heads": 2, "head_dim": 16, "vocab_size": 2000}
        config = AutoConfig.for_model(model_type, **(small | {"pad_token_id": 0}))
        from_config(config).save_pretrained(folder)
        make_tokenizer(pads_left=False).save_pretrained(folder)
        transformer: Any = Transformer(str(Path(folder)))
    with torch.device("meta"):
        config = AutoConfig.for_model(model_type, **values)
        network = from_config(config, dtype=torch.bfloat16).eval()
    for module in network.modules():
        for key, weight in module._parameters.items():
            if weight is not None:
                module._parameters[key] = torch.nn.Parameter(EmulatedTensor(weight.data), requires_grad=False)
        for key, buffer in module._buffers.items():
            module._buffers[key] = None if buffer is None else EmulatedTensor(buffer)
    network.config.use_cache = False  # as sentence-transformers sets it
    transformer.model = network
    modules = [transformer, Pooling(config.hidden_size, pooling_mode=pooling)]
    model = SentenceTransformer(modules=modules, device=str(DEVICE))
    layout = replace(get_padded_layout(transformer), form="packed")
    layout = replace(layout, pooled_token=last_layer.find_pooled_token(model, network, layout))
    install_packing(transformer, packed_attention.VARLEN, layout)
    return TorchBackend(TorchModel(model=model, layouts={None: layout}))


def choose_ways(backend: TorchBackend) -> Iterator[tuple[str, int]]:
    """Switch the backend to each way to compute layers; yield its name and the number of compiled layers."""
    network: Any = backend.torch_model.model[0].model
    # Norms are compared with their fused form, which takes weights; there are none here.
    with mock.patch.object(fused_norms, fused_norms._is_plain.__name__, return_value=True):
        classes = fused_norms.find_norms(network) | fused_products.find_layers(network)
    classes |= fused_products.find_activations(network)
    if classes:
        yield "not fused", 0
        set_classes(classes)
    yield "eager", 0
    yield "compiled", compile_layers(backend)


def compile_layers(backend: TorchBackend) -> int:
    """Compile the layers, but for their code, and return their number."""
    network: Any = backend.torch_model.model[0].model
    layers = CompiledLayers([network], FusingCompiler())
    with layers.compiling():
        for lengths in _FIRST_BATCHES:
            launch(backend, lengths)
    layers.enable()
    return len(layers)


def launch(backend: TorchBackend, lengths: list[int]) -> Log:
    """Launch one batch and return what it does on the device."""
    batch = [Encoded(np.full(length, 5, dtype=np.int32)) for length in lengths]
    with record() as log:
        backend.launch(batch)
    return log


def price(launched: Launch, lengths: list[int]) -> tuple[str, float, float]:
    """Return the kind of a kernel, its FLOP and the bytes that it moves."""
    if launched.moved_bytes is not None:
        return "elementwise", 0.0, launched.moved_bytes
    numbers = sum(each.numel() * each.element_size() for each in {id(t): t for t in launched.inputs}.values())
    written = sum(each.numel() * each.element_size() for each in launched.outputs)
    if launched.name in PRODUCTS:
        adds = launched.name.lstrip("_").startswith("add")
        summed = launched.inputs[1 if adds else 0].shape[-1]
        return "products", 2.0 * launched.outputs[0].numel() * summed, numbers + written
    if launched.name == ATTENTION:
        query = launched.inputs[0]
        left, right = launched.arguments[9] or (-1, -1)
        are_pooled = query.shape[0] == len(lengths)
        pairs = sum(count_pairs(length, 1 if are_pooled else length, left, right) for length in lengths)
        flop = 4.0 * pairs * query.shape[1] * query.shape[2]
        return "attention", flop, numbers + written
    if launched.name in ("embedding", "index", "index_select", "gather"):
        return "elementwise", 0.0, 2 * written  # of the table only the rows are read
    return "elementwise", 0.0, numbers + written


def count_pairs(length: int, num_queries: int, left: int, right: int) -> int:
    """Count the queries' keys in a text, whose last query is at its last key.

    left, right: neighbours on either side to which a query attends; -1 for all.
    """
    position = np.arange(length - num_queries, length)
    first = np.maximum(position - left, 0) if left >= 0 else 0
    last = np.minimum(position + right, length - 1) if right >= 0 else length - 1
    return int(np.sum(last - first + 1 + 0 * position))


def estimate(log: Log, lengths: list[int], num_compiled: int = 0) -> dict[str, Any]:
    """Return the seconds by kind, and the sums, of one batch with a number of compiled layers."""
    seconds: dict[str, float] = defaultdict(float)
    total_flop, total_bytes = 0.0, 0.0
    for launched in log.launches:
        kind, flop, moved = price(launched, lengths)
        rate = ATTENTION_FLOPS if kind == "attention" else MATRIX_FLOPS
        seconds[kind] += max(flop / rate, moved / BYTES_PER_S)
        total_flop, total_bytes = total_flop + flop, total_bytes + moved
    device_s = sum(seconds.values())
    host_s = len(log.launches) * LAUNCH_S + num_compiled * COMPILED_CALL_S
    return {
        "launches": len(log.launches),
        "TFLOP": total_flop / 1e12,
        "GB": total_bytes / 1e9,
        "copies": log.num_copies,
        "waits": len(log.waits),
        "device_ms": device_s * 1e3,
        "host_ms": host_s * 1e3,
        "share": seconds["elementwise"] / device_s,
        "millions": sum(lengths) / max(device_s, host_s) / 1e6,
        "fused_millions": sum(lengths) / (seconds["products"] + seconds["attention"]) / 1e6,
    }


def main() -> None:
    """Print a row per model, way to compute it and batch, and a table of what was asked."""
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # it has no annotation
    columns = (
        "model", "layers", "texts x tokens", "launches", "TFLOP", "GB moved", "copies", "waits", "device ms",
        "elementwise", "host ms", "M tokens/s", "products and attention alone",
    )  # fmt: skip
    print_row(columns)
    print_row(["---"] * len(columns))
    found: dict[tuple[str, str], dict[str, Any]] = {}
    with emulate_cuda(has_numbers=False):
        for name in MODELS:
            backend = build_backend(name)
            for way, num_compiled in choose_ways(backend):
                for batch, lengths in BATCHES.items():
                    row = estimate(launch(backend, lengths), lengths, num_compiled)
                    print_row([name, way, batch, *format_columns(row)])
                    if batch == _AIMED_BATCH:
                        found[name, way] = row
    print()
    print_aims(found)


def print_aims(found: dict[tuple[str, str], dict[str, Any]]) -> None:
    """Print what was asked beside what both ways reach."""
    columns = ("model", "asked, M tokens/s", "eager", "compiled", "products and attention alone")
    print_row(columns)
    print_row(["---"] * len(columns))
    for name, aim in AIMS.items():
        eager, compiled = found[name, "eager"], found[name, "compiled"]
        rates = (eager["millions"], compiled["millions"], compiled["fused_millions"])
        print_row([name, f"{aim:.2f}", *(f"{rate:.2f}" for rate in rates)])


def print_row(columns: Iterable[str]) -> None:
    """Print a row of a Markdown table."""
    print(f"| {' | '.join(columns)} |", flush=True)


def format_columns(row: dict[str, Any]) -> list[str]:
    """Return the columns behind the names of model, way and batch."""
    formats = (
        "{launches}", "{TFLOP:.3f}", "{GB:.2f}", "{copies}", "{waits}", "{device_ms:.2f}", "{share:.0%}",
        "{host_ms:.2f}", "{millions:.2f}", "{fused_millions:.2f}",
    )  # fmt: skip
    return [each.format(**row) for each in formats]


if __name__ == "__main__":
    main()
