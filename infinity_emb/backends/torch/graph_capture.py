"""Capture the graphs of a replica at start, within a share of the device's memory, and compare them.

A graph computes the same as an eager batch with dummy texts in it. It is kept only if that changes no
decision (`backends/closeness.py`): eager batches are the current way, and the differences between them its
noise.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import torch

from infinity_emb.backends.torch.backend import TorchBackend
from infinity_emb.backends.torch.device import (
    count_bytes_for_graphs,
    free_bytes,
    make_graph_pool,
    wait_for,
)
from infinity_emb.backends.torch.eager_outputs import EagerOutputs, Entries, Score
from infinity_emb.backends.torch.graphs import (
    CapturedForward,
    GraphShape,
    can_be_captured,
    is_graphable,
    list_shapes,
)
from infinity_emb.backends.torch.packed_attention import VARLEN
from infinity_emb.errors import one_line
from infinity_emb.items import Encoded

logger = logging.getLogger("infinity_emb")


def capture_graphs(backend: TorchBackend, samples: Sequence[Encoded], score: Score) -> None:
    """Capture graphs for the spec of the samples, on a device that has graphs and memory for them.

    samples: texts of one spec, to compare graphs with; those that do not fit a graph are left out.
    score: vectors or raw scores → the scores by which clients decide.
    """
    items, spec = [item for item in samples if is_graphable(item)], samples[0].spec
    model = backend.torch_model
    device = model.model.device
    budget = count_bytes_for_graphs(device)
    if not budget or not items or not can_be_captured(model.get_layout(spec), spec):
        return
    if model.attention_kernels != {VARLEN}:
        logger.info("captured no CUDA graphs: they need attention in one kernel")  # else one per length
        return
    backend.prepare_thread()
    items.sort(key=lambda item: len(item.token_ids))
    eager = EagerOutputs(backend, items, score)
    free_before, pool = free_bytes(device) or 0, make_graph_pool()
    refused: list[str] = []
    for shape in list_shapes():
        try:
            captured = CapturedForward(model, spec, shape, pool)
            found = _replay_all(captured, items, device)
        except RuntimeError as exc:  # raised by CUDA if the host would wait for the device
            refused.append(f"{shape.num_tokens} tokens cannot be captured ({one_line(exc, 200)})")
            break
        objection = eager.find_objection(found) if found else "hold none of the texts to compare with"
        if objection:
            refused.append(f"{shape.num_tokens} tokens in {shape.num_texts} texts {objection}")
        elif free_before - (free_bytes(device) or 0) > budget:
            refused.append(f"{shape.num_tokens} tokens would take more than {budget / 1e6:.0f} MB in all")
            break
        else:
            backend.graphs.add(spec, captured)
    if refused:
        logger.warning("CUDA graphs are not used for some batches: %s", "; ".join(refused))
    logger.info("captured %d CUDA graphs", len(backend.graphs))


def _replay_all(captured: CapturedForward, items: list[Encoded], device: torch.device) -> Entries:
    """Return the outputs of the items that fit the graph, which are the first ones."""
    entries: Entries = []
    with torch.inference_mode():
        for batch in _group(items, captured.shape):
            output = captured.replay(batch).copy_to_host()
            wait_for(device)
            entries += list(output.to_entries().copy())
    return entries


def _group(items: list[Encoded], shape: GraphShape) -> Iterator[list[Encoded]]:
    """Yield batches that fit the shape, up to the first item that does not fit even alone."""
    batch: list[Encoded] = []
    for item in items:
        num_tokens = sum(len(each.token_ids) for each in batch) + len(item.token_ids)
        if not shape.fits(num_tokens, len(batch) + 1):
            if batch:
                yield batch
            batch, num_tokens = [], len(item.token_ids)
            if not shape.fits(num_tokens, 1):
                return
        batch.append(item)
    if batch:
        yield batch
