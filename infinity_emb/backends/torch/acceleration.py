"""Make a loaded model faster where that changes no decision: fused kernels, compiled layers, graphs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch

from infinity_emb.backends.probes import as_inputs, passages, short_texts
from infinity_emb.backends.torch.backend import TorchBackend
from infinity_emb.backends.torch.device import count_bytes_for_graphs, has_fused_norm, is_cpu
from infinity_emb.backends.torch.eager_outputs import Score
from infinity_emb.backends.torch.fused_norms import fuse_norms
from infinity_emb.backends.torch.fused_products import fuse_products
from infinity_emb.backends.torch.graph_capture import capture_graphs
from infinity_emb.backends.torch.layer_compilation import compile_layers
from infinity_emb.backends.torch.prepared_model import PreparedModel
from infinity_emb.items import Encoded, ForwardSpec, InputOptions, number_inputs
from infinity_emb.types import ModelKind, OutputName


def accelerate(
    replicas: Sequence[TorchBackend],
    prepared: PreparedModel,
    kind: ModelKind,
    score: Score,
    *,
    may_compile: bool,
) -> None:
    """Fuse kernels of each replica, compile its layers if requested, and capture its graphs.

    score: outputs → the scores by which clients decide.
    """
    model = replicas[0].torch_model.model
    device = model.device
    has_graphs = bool(count_bytes_for_graphs(device)) and kind is not ModelKind.sparse
    may_fuse = any(has_fused_norm(weight.device, weight.dtype) for weight in model.parameters())
    if not has_graphs and not may_compile and not may_fuse:
        return
    output: OutputName = "sparse" if kind is ModelKind.sparse else "dense"
    samples = _list_samples(prepared, kind, output)
    for replica in replicas if may_fuse else ():
        fuse_norms(replica, samples, score)
        fuse_products(replica, samples, score)
    if may_compile:
        with preserve_num_threads():
            # Replicas on a CPU share the layers.
            for replica in replicas[:1] if is_cpu(device) else replicas:
                compile_layers(replica, samples, score)
    for replica in replicas if has_graphs else ():
        for items in samples:
            capture_graphs(replica, items, score)


def _list_samples(prepared: PreparedModel, kind: ModelKind, output: OutputName) -> list[list[Encoded]]:
    """Encode sample texts, once for each spec that texts have."""
    inputs = number_inputs(as_inputs([*short_texts(), *passages()], are_pairs=kind is ModelKind.reranker))
    by_spec: dict[ForwardSpec, list[Encoded]] = {}
    for task in prepared.text_encoders:
        items = prepared.encode(inputs, InputOptions(task=task, outputs=(output,)))
        by_spec.setdefault(items[0].spec, items)
    return list(by_spec.values())


@contextlib.contextmanager
def preserve_num_threads() -> Iterator[None]:
    """Restore the number of cores that torch uses on this thread, which computing batches changes."""
    num_threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
