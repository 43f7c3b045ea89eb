"""Compute batches with a sentence-transformers model; its modules, pooling included, are used unchanged."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from infinity_emb.backends.out_of_memory import is_out_of_memory
from infinity_emb.backends.torch import packed_attention
from infinity_emb.backends.torch.blocks import build_blocks
from infinity_emb.backends.torch.cpu_threads import SharedCores
from infinity_emb.backends.torch.device import count_in_flight, free_memory, set_current
from infinity_emb.backends.torch.forward import TorchModel, compute_block
from infinity_emb.backends.torch.graphs import ForwardGraphs
from infinity_emb.backends.torch.outputs import BlockOutputs, TorchInFlightBatch
from infinity_emb.backends.torch.st_introspection import find_transformers
from infinity_emb.errors import DeviceOutOfMemory
from infinity_emb.items import Encoded, ForwardSpec


class TorchBackend:
    """One copy of a model on one device.

    torch_model: read by tests and benchmarks; its weights are in use.
    graphs: of small batches, empty until some are captured.
    cores: shared by the replicas on a CPU; None for torch's own setting.
    """

    def __init__(self, torch_model: TorchModel, *, cores: SharedCores | None = None) -> None:
        self.num_in_flight = count_in_flight(torch_model.model.device)
        self.shares_device = cores is not None
        self.torch_model = torch_model
        self.graphs = ForwardGraphs()
        self._device = torch_model.model.device
        self._cores = cores

    def prepare_thread(self) -> None:
        """Set the thread's current GPU."""
        set_current(self._device)

    def free_memory(self) -> None:
        """Empty torch's cache of device memory."""
        free_memory(self._device)

    def launch(self, batch: Sequence[Encoded], *, full_precision: bool = False) -> TorchInFlightBatch:
        """Queue the batch on the device; on a CPU compute it.

        full_precision: compute each item alone, so that infinite values of one do not reach another.
        Raises DeviceOutOfMemory, and whatever the model raises.
        """
        torch_model = to_full_precision(self.torch_model) if full_precision else self.torch_model
        groups = [[index] for index in range(len(batch))] if full_precision else _group_by_spec(batch)
        num_tokens = sum(item.num_tokens for item in batch)
        cores = self._cores.share(num_tokens) if self._cores else contextlib.nullcontext()
        outputs: list[BlockOutputs] = []
        with torch.inference_mode(), cores, _translate_oom():
            for positions in groups:
                items = [batch[position] for position in positions]
                spec = items[0].spec
                captured = None if full_precision else self.graphs.find(spec, items)
                if captured is not None:
                    outputs.append(BlockOutputs(positions, {"dense": captured.replay(items)}))
                    continue
                for block in build_blocks(items, torch_model.get_layout(spec), self._device):
                    members = [items[index] for index in block.positions]
                    by_name = compute_block(torch_model, block, members, spec)
                    outputs.append(BlockOutputs([positions[index] for index in block.positions], by_name))
            return TorchInFlightBatch.start(outputs, len(batch), self._device)


@contextlib.contextmanager
def _translate_oom() -> Iterator[None]:
    try:
        yield
    except RuntimeError as exc:  # the base class of torch.OutOfMemoryError
        if not is_out_of_memory(exc):
            raise
        raise DeviceOutOfMemory("does not fit into the device's memory; send a shorter one") from exc


def _group_by_spec(batch: Sequence[Encoded]) -> list[list[int]]:
    groups: dict[ForwardSpec, list[int]] = {}
    for position, item in enumerate(batch):
        groups.setdefault(item.spec, []).append(position)
    return list(groups.values())


def to_full_precision(torch_model: TorchModel) -> TorchModel:
    """Return a float32 copy of a model in another dtype, or the model itself."""
    networks = [transformer.model for transformer in find_transformers(torch_model.model)]
    # A quantized model has lost its float32 weights.
    is_quantized = any(getattr(network, "number_format", None) is torch.int8 for network in networks)
    if is_quantized or all(weight.dtype == torch.float32 for weight in torch_model.model.parameters()):
        return torch_model
    model = copy.deepcopy(torch_model.model).float()
    for transformer in find_transformers(model):
        if transformer.model.config._attn_implementation == packed_attention.VARLEN:
            # That kernel does not support float32.
            transformer.model.set_attn_implementation(packed_attention.GROUPED)
    return replace(torch_model, model=model)
