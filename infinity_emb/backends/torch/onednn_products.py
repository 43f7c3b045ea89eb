"""Multiply by float32 weights with oneDNN on CPUs where it is faster than MKL, which torch uses.

MKL leaves AVX-512 unused on CPUs that are not Intel's. oneDNN, which torch has for other dtypes, uses it: on
AMD's Zen 5, products take less than half the time (`make bench-few_rows`). Weights are stored as before; only
the order of sums differs, so outputs differ by rounding.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from infinity_emb.backends.probes import measure_rates
from infinity_emb.backends.torch.cpu_threads import one_core
from infinity_emb.backends.torch.device import is_cpu
from infinity_emb.backends.torch.module_classes import Classes, set_classes

_has_onednn: Callable[[], bool] = torch.backends.mkldnn.is_available
# Read by oneDNN and by torch at the first product. For each number of rows oneDNN makes code of 0.6 MB, and
# keeps it 1,024 times, and torch as often again in each thread. Making it takes 0.1 to 0.2 ms.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
os.environ.setdefault("LRU_CACHE_CAPACITY", "1")

logger = logging.getLogger("infinity_emb")

# Calling oneDNN takes about 10 µs longer than calling MKL, which fewer rows do not make up for.
MIN_ROWS = 4
_MIN_GAIN = 1.1
_MEASURED_SHAPE = (1536, 384)
_MEASURED_ROWS = (32, 256)
_NUM_ROUNDS = 5
_TOLERANCE = 1e-4  # of sums of 384 products of numbers around 1


class OneDnnLinear(nn.Linear):
    """Multiply by oneDNN; the class of plain linear layers in float32 on a CPU."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Return (..., N) for (..., K)."""
        if torch.compiler.is_compiling():
            product: Tensor = multiply_as_operator(hidden, self.weight, self.bias)
            return product
        compute = multiply if self.is_supported(hidden) else linear
        return compute(hidden, self.weight, self.bias)

    def is_supported(self, hidden: Tensor) -> bool:
        """Return whether oneDNN multiplies this, without gradients, and faster; a copy has any dtype."""
        is_large = hidden.numel() >= MIN_ROWS * self.in_features
        return is_large and hidden.dtype == torch.float32 and not torch.is_grad_enabled()


def multiply(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return (..., N) for hidden (..., K), weight (N, K) and bias (N,), without gradients."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise.default(hidden, weight, bias, "none", [], "")
    return product


def multiply_and_add(residual: Tensor, hidden: Tensor, product: nn.Linear) -> Tensor:
    """Return residual (T, N) + product(hidden), (T, K) → (T, N)."""
    if isinstance(product, OneDnnLinear) and product.is_supported(hidden):
        total: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            hidden, residual, product.weight, product.bias, "add"
        )
        return total
    return (residual + product.bias).addmm_(hidden, product.weight.t())


@torch.library.custom_op("infinity_emb::multiply", mutates_args=())
def multiply_as_operator(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return (..., N), in a form that Inductor leaves alone; it would copy the weight for each batch."""
    return multiply(hidden, weight, bias)


multiply_as_operator.register_fake(
    lambda hidden, weight, bias: hidden.new_empty(*hidden.shape[:-1], weight.shape[0])
)


def use_onednn(model: nn.Module) -> None:
    """Let all plain linear layers in float32 on a CPU multiply by oneDNN, if that is faster here."""
    set_classes(_find_layers(model))


@contextlib.contextmanager
def fastest_products(model: nn.Module) -> Iterator[None]:
    """Do what `use_onednn` does until the end of the block, as when float32 is compared with other dtypes."""
    before = set_classes(_find_layers(model))
    try:
        yield
    finally:
        set_classes(before)


def _find_layers(model: nn.Module) -> Classes:
    layers = [module for module in model.modules() if type(module) is nn.Linear and _is_plain(module.weight)]
    return dict.fromkeys(layers, OneDnnLinear) if layers and is_faster() else {}


def _is_plain(weight: Tensor) -> bool:
    return weight.dtype == torch.float32 and is_cpu(weight.device) and type(weight.data) is Tensor


@functools.cache
def is_faster() -> bool:
    """Return whether oneDNN multiplies faster than torch does by itself, few rows and many; measured once."""
    if not _has_onednn():
        return False
    gain = min(map(_measure_gain, _MEASURED_ROWS))
    if gain >= _MIN_GAIN:
        logger.info("products in float32: oneDNN, measured %.1fx as fast as MKL on this CPU", gain)
    return gain >= _MIN_GAIN


def _measure_gain(num_rows: int) -> float:
    """Return how many times as fast oneDNN is as torch by itself, on one core; 0 if its product differs."""
    weight, bias = torch.randn(_MEASURED_SHAPE), torch.randn(_MEASURED_SHAPE[0])
    hidden = torch.randn(num_rows, _MEASURED_SHAPE[1])

    def measure(compute: Callable[..., Tensor]) -> float:
        started_s = time.thread_time()
        compute(hidden, weight, bias)
        return 1 / (time.thread_time() - started_s)

    with torch.inference_mode(), one_core():
        found, expected = (compute(hidden, weight, bias) for compute in (multiply, linear))
        if not torch.allclose(found, expected, atol=_TOLERANCE):
            return 0.0
        candidates = {each: functools.partial(measure, each) for each in (linear, multiply)}
        rates = measure_rates(candidates, max_rounds=_NUM_ROUNDS)
    return rates[multiply] / rates[linear]
