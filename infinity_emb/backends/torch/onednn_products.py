"""Multiply by float32 weights with oneDNN on CPUs where it is faster than MKL, which torch uses.

MKL leaves AVX-512 unused on CPUs that are not Intel's. oneDNN, which torch has for other dtypes, uses it:
on one core it is 1.6 to 2.3 times as fast as MKL on AMD's Zen 5, and 1.1 to 1.3 times on Zen 4, whose units
for AVX-512 are half as wide (`make bench-few_rows`). Weights are stored as before. Sums are added in
another order; rounding errors are up to three times those of MKL, as measured for 3,072 summands.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterator, MutableMapping

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from infinity_emb.backends.probes import measure_calls_per_s, measure_rates
from infinity_emb.backends.torch.cpu_threads import one_core
from infinity_emb.backends.torch.cpu_weights import is_plain, to_input_major
from infinity_emb.backends.torch.module_classes import Classes, set_classes
from infinity_emb.errors import one_line

logger = logging.getLogger("infinity_emb")

# A call of oneDNN takes about 10 µs longer than one of MKL, which smaller products do not make up for.
MIN_ROWS = 4
MIN_WEIGHTS = 2**14
# The measurement repeats products of the same size. With each new number of rows oneDNN generates code, which
# takes about 3 % of the time of a batch: on Zen 4, where 1.12 is measured, batches of all sizes gain 1.06.
_MIN_GAIN = 1.05
_MEASURED_SHAPE = (1536, 384)
_MEASURED_ROWS = (32, 256)
_NUM_ROUNDS, _MIN_DURATION_S = 5, 0.003
_TOLERANCE = 1e-4  # of sums of 384 products of numbers around 1

# oneDNN generates code for each number of rows, 0.6 MB, and caches it. Its own cache has room for 1,024, and
# that of ideep, which torch calls it through, for as many again in each thread.
# By name of the variable, and an older name of it.
_CACHE_SIZES = {
    ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY"): "256",
    ("LRU_CACHE_CAPACITY",): "1",
}


def limit_caches(environ: MutableMapping[str, str]) -> None:
    """Limit oneDNN's caches unless the environment does; they read it at the first product."""
    for names, size in _CACHE_SIZES.items():
        if environ.keys().isdisjoint(names):
            environ[names[0]] = size


limit_caches(os.environ)  # products in bfloat16 use oneDNN as well, wherever they are computed


class OneDnnLinear(nn.Linear):
    """Multiply with oneDNN; the class of plain linear layers in float32 on a CPU."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Return (..., N) for (..., K)."""
        if torch.compiler.is_compiling():
            product: Tensor = multiply_as_operator(hidden, self.weight, self.bias)
            return product
        return choose_linear(self, hidden)(hidden, self.weight, self.bias)


def choose_linear(layer: nn.Linear, hidden: Tensor) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """Return the function by which the layer multiplies this input: `onednn_linear`, or torch's own.

    oneDNN computes no gradients, and gains from a few rows on.
    """
    is_large = hidden.numel() >= MIN_ROWS * layer.in_features
    # A copy of the model has layers of the same class, and may have another dtype.
    is_supported = hidden.dtype == torch.float32 and not torch.is_grad_enabled()
    return onednn_linear if is_large and is_supported and isinstance(layer, OneDnnLinear) else linear


def onednn_linear(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return (..., N) for hidden (..., K), weight (N, K) and a contiguous bias (N,), without gradients."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise.default(hidden, weight, bias, "none", [], "")
    return product


def multiply_and_add(residual: Tensor, hidden: Tensor, layer: nn.Linear) -> Tensor:
    """Return residual (T, N) + layer(hidden), (T, K) → (T, N)."""
    if choose_linear(layer, hidden) is onednn_linear:
        total: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            hidden, residual, layer.weight, layer.bias, "add"
        )
        return total
    return (residual + layer.bias).addmm_(hidden, layer.weight.t())


@torch.library.custom_op("infinity_emb::multiply", mutates_args=())
def multiply_as_operator(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return (..., N), in a form that Inductor leaves alone; it would copy the weight for each batch."""
    return onednn_linear(hidden, weight, bias)


multiply_as_operator.register_fake(
    lambda hidden, weight, bias: hidden.new_empty(*hidden.shape[:-1], weight.shape[0])
)


def use_onednn(model: nn.Module) -> None:
    """Let plain linear layers in float32 on a CPU multiply with oneDNN, if that is faster here."""
    set_classes(_find_layers(model))


@contextlib.contextmanager
def fastest_products(model: nn.Module) -> Iterator[None]:
    """Do what `use_onednn` does until the end of the block; for measuring a model that is not yet served."""
    before = set_classes(_find_layers(model))
    try:
        yield
    finally:
        set_classes(before)


def _find_layers(model: nn.Module) -> Classes:
    layers = [module for module in model.modules() if type(module) is nn.Linear and _is_suitable(module)]
    return dict.fromkeys(layers, OneDnnLinear) if layers and is_onednn_faster() else {}


def _is_suitable(layer: nn.Linear) -> bool:
    weight, bias = layer.weight, layer._parameters["bias"]
    # oneDNN reads a bias without its strides.
    return is_plain(weight) and weight.numel() >= MIN_WEIGHTS and (bias is None or bias.is_contiguous())


@functools.cache
def is_onednn_faster() -> bool:
    """Return whether oneDNN multiplies both few and many rows faster than torch does by itself.

    Measured once per process.
    """
    if not _has_onednn():
        return False
    try:
        gain = min(map(_measure_gain, _MEASURED_ROWS))
    except (RuntimeError, AttributeError) as exc:  # an operator that this build of torch lacks
        logger.warning("oneDNN is not used: its product cannot be computed: %s", one_line(exc, 200))
        return False
    is_faster = gain >= _MIN_GAIN
    found = "used" if is_faster else "not used"
    logger.info("oneDNN is %s for float32: measured %.1fx as fast as torch's own product", found, gain)
    return is_faster


def _has_onednn() -> bool:
    is_available: Callable[[], bool] = torch.backends.mkldnn.is_available
    return is_available() and bool(torch.backends.mkldnn.enabled)


def _measure_gain(num_rows: int) -> float:
    """Return how many times as fast oneDNN is as torch by itself, on one core; 0 if its product differs."""
    generator = torch.Generator().manual_seed(0)
    options = {"generator": generator, "dtype": torch.float32, "device": "cpu"}
    make: Callable[..., Tensor] = functools.partial(torch.randn, **options)
    weight, bias = to_input_major(make(_MEASURED_SHAPE)), make(_MEASURED_SHAPE[0])
    hidden = make(num_rows, _MEASURED_SHAPE[1])

    def measure(compute: Callable[..., Tensor]) -> float:
        product = functools.partial(compute, hidden, weight, bias)
        return measure_calls_per_s(product, min_duration_s=_MIN_DURATION_S)

    with torch.inference_mode(), one_core():
        found, expected = (compute(hidden, weight, bias) for compute in (onednn_linear, linear))
        if not torch.allclose(found, expected, atol=_TOLERANCE):
            return 0.0
        candidates = {each: functools.partial(measure, each) for each in (onednn_linear, linear)}
        rates = measure_rates(candidates, max_rounds=_NUM_ROUNDS)
    return rates[onednn_linear] / rates[linear]
