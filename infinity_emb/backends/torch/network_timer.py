"""Time the parts of a model while it computes requests, and its matrix products alone, for `profile`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from infinity_emb.backends.torch.backend import TorchBackend
from infinity_emb.backends.torch.device import wait_for
from infinity_emb.backends.torch.onednn_products import choose_linear
from infinity_emb.backends.torch.st_introspection import find_transformers

_NUM_RUNS = 8  # of each product; the best counts
_MAX_RUNS_S = 0.5


class _Product(NamedTuple):
    """A matrix product: (rows, inputs) times (inputs, outputs)."""

    rows: int
    inputs: int
    outputs: int


class TorchNetworkTimer:
    """Time one replica, which must compute one batch at a time.

    network_s: time of the whole network; layers_s: the part that its transformers took; the rest is pooling
        and heads.
    """

    def __init__(self, backend: TorchBackend) -> None:
        self.network_s = self.layers_s = 0.0
        self._model = backend.torch_model.model
        self._transformers = find_transformers(self._model)
        self._products: Counter[_Product] = Counter()
        self._layers: dict[_Product, nn.Linear] = {}

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Add the time of what is computed inside the block; a GPU then waits for each part to end."""
        with ExitStack() as stack:
            self._time(stack, self._model, self._add_network)
            for transformer in self._transformers:
                self._time(stack, transformer, self._add_layers)
            yield

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the matrix products of linear layers that are computed inside the block."""
        with ExitStack() as stack:
            for transformer in self._transformers:
                for module in transformer.modules():
                    if isinstance(module, nn.Linear):
                        stack.callback(module.register_forward_hook(self._record).remove)
            yield

    def time_products(self) -> float | None:
        """Return how long the recorded products take alone; None if there are none, as in int8."""
        if not self._products:
            return None
        return sum(
            number * self._time_product(product, self._layers[product])
            for product, number in self._products.items()
        )

    def _record(self, layer: nn.Linear, args: Any, _: object) -> None:
        num_rows = args[0].numel() // args[0].shape[-1]
        product = _Product(num_rows, layer.in_features, layer.out_features)
        self._products[product] += 1
        self._layers[product] = layer

    def _time_product(self, product: _Product, layer: nn.Linear) -> float:
        weight = layer.weight
        rows = torch.randn(product.rows, product.inputs, device=weight.device).to(weight.dtype)
        best_s, deadline_s = float("inf"), time.monotonic() + _MAX_RUNS_S
        with torch.inference_mode():
            compute = choose_linear(layer, rows)
            for _ in range(_NUM_RUNS):
                started_s = self._read_clock()
                compute(rows, weight, None)
                best_s = min(best_s, self._read_clock() - started_s)
                if time.monotonic() > deadline_s:
                    break
        return best_s

    def _time(self, stack: ExitStack, module: nn.Module, add: Callable[[float], None]) -> None:
        started_s = 0.0

        def begin(*_: object) -> None:
            nonlocal started_s
            started_s = self._read_clock()

        def end(*_: object) -> None:
            add(self._read_clock() - started_s)

        stack.callback(module.register_forward_pre_hook(begin).remove)
        stack.callback(module.register_forward_hook(end).remove)

    def _read_clock(self) -> float:
        wait_for(self._model.device)
        return time.perf_counter()

    def _add_network(self, seconds: float) -> None:
        self.network_s += seconds

    def _add_layers(self, seconds: float) -> None:
        self.layers_s += seconds
