"""Products by oneDNN equal those of torch, and are used only where they are faster and may be."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.nn.functional import linear

from infinity_emb.backends.torch import onednn_products
from infinity_emb.backends.torch.cpu_weights import to_input_major
from infinity_emb.backends.torch.onednn_products import (
    MIN_ROWS,
    OneDnnLinear,
    fastest_products,
    is_onednn_faster,
    limit_caches,
    multiply_and_add,
    onednn_linear,
    use_onednn,
)
from infinity_emb.backends.torch.reference import Reference
from infinity_emb.items import InputOptions, number_inputs
from tests.support.accelerated_models import count_modules, get_backend, load_folder
from tests.support.model_kinds import TEXTS, list_kinds

pytestmark = [
    pytest.mark.model,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN"),
]

NUM_INPUTS, NUM_OUTPUTS = 24, 40
ORDERS: dict[str, Callable[[Tensor], Tensor]] = {"as in files": torch.clone, "by input": to_input_major}


@pytest.fixture(autouse=True)
def small_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let layers of any size multiply with oneDNN."""
    monkeypatch.setattr(onednn_products, "MIN_WEIGHTS", 0)


@pytest.fixture
def always_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn_products, "is_onednn_faster", lambda: True)


@pytest.fixture(params=[True, False], ids=["oneDNN is faster", "oneDNN is slower"])
def is_used(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(onednn_products, "is_onednn_faster", lambda: request.param)
    return bool(request.param)


@pytest.fixture
def unmeasured() -> Iterator[None]:
    """Forget the measurement of this process, before and after."""
    is_onednn_faster.cache_clear()
    yield
    is_onednn_faster.cache_clear()


def make_layer(*, bias: bool = True, order: str = "by input") -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(NUM_INPUTS, NUM_OUTPUTS, bias=bias)
    layer.weight.data = ORDERS[order](layer.weight.data)
    return layer


def compute_exactly(hidden: Tensor, layer: nn.Linear) -> Tensor:
    """Return the product in float64."""
    exact = copy.deepcopy(layer).double()
    return linear(hidden.double(), exact.weight, exact.bias)


def assert_close(found: Tensor, exact: Tensor) -> None:
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1,), (MIN_ROWS,), (33,), (2, 5), (0,), (3, 0)])
def test_rows_of_any_shape_are_multiplied(shape: tuple[int, ...], bias: bool, order: str) -> None:
    layer = make_layer(bias=bias, order=order)
    hidden = torch.randn(*shape, NUM_INPUTS)
    with torch.inference_mode():
        assert_close(onednn_linear(hidden, layer.weight, layer.bias), compute_exactly(hidden, layer))


@pytest.mark.parametrize(
    "hidden",
    [
        torch.randn(NUM_INPUTS, 9).t(),
        torch.randn(9, 3 * NUM_INPUTS)[:, NUM_INPUTS : 2 * NUM_INPUTS],
        torch.randn(1, NUM_INPUTS).expand(9, NUM_INPUTS),
    ],
    ids=["transposed", "columns of a wider matrix", "expanded"],
)
def test_rows_of_any_strides_are_multiplied(hidden: Tensor) -> None:
    layer = make_layer()
    with torch.inference_mode():
        assert_close(onednn_linear(hidden, layer.weight, layer.bias), compute_exactly(hidden, layer))


def test_a_layer_whose_bias_has_strides_stays_as_it_is(always_used: None) -> None:
    layer = make_layer()
    layer.bias = nn.Parameter(torch.randn(2 * NUM_OUTPUTS)[::2], requires_grad=False)
    use_onednn(model := nn.Sequential(layer))
    assert type(model[0]) is nn.Linear


def test_a_small_layer_stays_as_it_is(monkeypatch: pytest.MonkeyPatch, always_used: None) -> None:
    monkeypatch.setattr(onednn_products, "MIN_WEIGHTS", NUM_INPUTS * NUM_OUTPUTS)
    model = nn.Sequential(make_layer(), nn.Linear(NUM_OUTPUTS, NUM_INPUTS - 1))
    use_onednn(model)
    assert [type(layer) for layer in model] == [OneDnnLinear, nn.Linear]


@pytest.mark.parametrize("layer_class", [nn.Linear, OneDnnLinear])
@pytest.mark.parametrize("num_rows", [1, MIN_ROWS, 33])
def test_a_residual_is_added_and_stays_as_it_was(num_rows: int, layer_class: type[nn.Linear]) -> None:
    layer = make_layer()
    hidden, residual = torch.randn(num_rows, NUM_INPUTS), torch.randn(num_rows, NUM_OUTPUTS)
    exact, before = compute_exactly(hidden, layer) + residual.double(), residual.clone()
    layer.__class__ = layer_class
    with torch.inference_mode():
        assert_close(multiply_and_add(residual, hidden, layer), exact)
    assert torch.equal(residual, before)


def test_few_rows_gradients_and_other_dtypes_are_left_to_torch(
    monkeypatch: pytest.MonkeyPatch, always_used: None
) -> None:
    layer = make_layer()
    use_onednn(model := nn.Sequential(layer))
    calls: list[int] = []

    def record_rows(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        calls.append(len(hidden))
        return linear(hidden, weight, bias)

    monkeypatch.setattr(onednn_products, "onednn_linear", record_rows)
    with torch.inference_mode():
        model(torch.randn(MIN_ROWS - 1, NUM_INPUTS))
        model(torch.randn(MIN_ROWS, NUM_INPUTS))
        copy.deepcopy(model).double()(torch.randn(MIN_ROWS, NUM_INPUTS).double())
    model(torch.randn(MIN_ROWS, NUM_INPUTS)).sum().backward()
    assert calls == [MIN_ROWS]
    assert layer.weight.grad is not None


def test_only_plain_layers_in_float32_change(always_used: None) -> None:
    class Weight(Tensor):
        """A weight of another library, such as one of int8."""

    own = make_layer()
    own.weight = nn.Parameter(own.weight.data.as_subclass(Weight), requires_grad=False)
    half, attention = make_layer().to(torch.bfloat16), nn.MultiheadAttention(8, 2)
    model = nn.ModuleList([make_layer(), half, own, attention])
    use_onednn(model)
    changed = [module for module in model.modules() if isinstance(module, OneDnnLinear)]
    assert changed == [model[0]]


def test_layers_change_only_where_that_is_faster(is_used: bool) -> None:
    model = nn.Sequential(make_layer())
    use_onednn(model)
    assert (type(model[0]) is OneDnnLinear) == is_used


def test_layers_change_for_a_block_only(always_used: None) -> None:
    model = nn.Sequential(make_layer())
    with fastest_products(model):
        assert type(model[0]) is OneDnnLinear
    assert type(model[0]) is nn.Linear
    with pytest.raises(RuntimeError), fastest_products(model):
        model(torch.randn(1))
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize(("gains", "expected"), [((2.0, 1.1), True), ((2.0, 1.02), False), ((0.5, 2), False)])
def test_it_has_to_be_faster_for_few_rows_and_for_many(
    gains: tuple[float, float], expected: bool, monkeypatch: pytest.MonkeyPatch, unmeasured: None
) -> None:
    remaining = iter(gains)
    monkeypatch.setattr(onednn_products, "_measure_gain", lambda num_rows: next(remaining))
    assert [is_onednn_faster(), is_onednn_faster()] == [expected, expected]


def test_the_gain_is_measured_on_one_core_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[tuple[int, torch.dtype]] = set()

    def record(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        seen.add((torch.get_num_threads(), hidden.dtype))
        return linear(hidden, weight, bias)

    monkeypatch.setattr(onednn_products, "onednn_linear", record)
    num_threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(2)
    torch.set_default_dtype(torch.float64)
    try:
        gain = onednn_products._measure_gain(16)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(num_threads)
    assert seen == {(1, torch.float32)}
    assert gain > 0
    assert torch.equal(torch.get_rng_state(), state)


def test_a_product_that_differs_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn_products, "onednn_linear", lambda hidden, weight, bias: linear(hidden, weight))
    assert onednn_products._measure_gain(16) == 0


@pytest.mark.parametrize("error", [RuntimeError("no such kernel"), AttributeError("no such operator")])
def test_a_product_that_cannot_be_computed_is_not_used(
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    unmeasured: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        raise error

    monkeypatch.setattr(onednn_products, "onednn_linear", fail)
    assert not is_onednn_faster()
    assert str(error) in caplog.text


def test_a_torch_without_onednn_measures_nothing(monkeypatch: pytest.MonkeyPatch, unmeasured: None) -> None:
    monkeypatch.setattr(onednn_products, "_has_onednn", lambda: False)
    monkeypatch.setattr(onednn_products, "_measure_gain", lambda num_rows: 1 / 0)
    assert not is_onednn_faster()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256", "LRU_CACHE_CAPACITY": "1"}),
        ({"DNNL_PRIMITIVE_CACHE_CAPACITY": "9"}, {"LRU_CACHE_CAPACITY": "1"}),
        (
            {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "7", "LRU_CACHE_CAPACITY": "8"},
            {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "7", "LRU_CACHE_CAPACITY": "8"},
        ),
    ],
)
def test_caches_are_limited_unless_the_environment_does(
    given: dict[str, str], expected: dict[str, str]
) -> None:
    environ = dict(given)
    limit_caches(environ)
    assert environ == given | expected


def test_the_caches_of_this_process_are_limited() -> None:
    assert {"ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"} <= os.environ.keys()


def test_compiled_code_calls_the_product_as_one_operator(always_used: None) -> None:
    model = nn.Sequential(make_layer(), nn.ReLU())
    use_onednn(model)
    graphs: list[Any] = []

    def keep(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=keep, dynamic=True)
    with torch.inference_mode():
        for num_rows in (9, 12):
            hidden = torch.randn(num_rows, NUM_INPUTS)
            torch.testing.assert_close(compiled(hidden), model(hidden), rtol=0, atol=1e-6)
    assert len(graphs) == 1
    assert torch.ops.infinity_emb.multiply.default in [node.target for node in graphs[0].graph.nodes]


@pytest.mark.parametrize("kind", ["bert", "distilbert", "modernbert", "qwen3", "t5"])
def test_served_vectors_are_those_of_sentence_transformers(kind: str, is_used: bool, tmp_path: Path) -> None:
    path = str(list_kinds()[f"embedder: {kind}"].save(tmp_path))
    served = load_folder(Path(path), device="cpu", model_warmup=False)
    backend = get_backend(served)
    assert bool(count_modules(backend, OneDnnLinear)) == is_used
    found = backend.launch(served.encode(number_inputs(TEXTS), InputOptions())).result()["dense"]
    reference = Reference(SentenceTransformer(path, device="cpu"))
    expected = [reference.embed(text) for text in TEXTS]
    np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=1e-5)
