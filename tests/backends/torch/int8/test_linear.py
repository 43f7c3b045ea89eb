"""What the int8 layers compute, against exact integers and against the layers that they stand for."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

from infinity_emb.backends.torch.int8 import linear as torch_int8
from infinity_emb.backends.torch.int8.linear import (
    Int8Linear,
    LastRows,
    Product,
    RowCoder,
    code_rows,
    measure_rounding_error,
    round_weight,
)

pytestmark = pytest.mark.model


@pytest.fixture(autouse=True)
def _same_numbers_each_time() -> None:
    torch.manual_seed(0)


def int8_of(layer: nn.Linear, coder: RowCoder | None = None) -> Int8Linear:
    return Int8Linear(layer.weight, layer.bias, coder or RowCoder(None, LastRows()))


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(("num_rows", "num_inputs", "num_outputs"), [(1, 8, 8), (7, 33, 5), (300, 384, 96)])
@pytest.mark.parametrize("of_one_sign", [True, False])
@torch.inference_mode()
def test_the_product_is_exact_in_integers(
    num_rows: int, num_inputs: int, num_outputs: int, of_one_sign: bool
) -> None:
    """Also where the largest codes meet the largest weights, which 16 bits cannot add up."""
    weight = torch.randn(num_outputs, num_inputs)
    rounded = round_weight(weight.abs() if of_one_sign else weight)
    codes = torch.randint(0, 256, (num_rows, num_inputs), dtype=torch.uint8)
    codes[0] = 255
    exact = (codes.long() @ rounded.codes.long().T).float() * rounded.scales
    found = Product(rounded)(codes)
    assert (found - exact).abs().max() <= 1e-6 * exact.abs().max()


def test_a_processor_that_adds_in_16_bits_gets_weights_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(64, 257)
    weight[0] = 1.0
    monkeypatch.setattr(torch_int8, "product_saturates", lambda: True)
    even = nn.functional.pad(round_weight(weight).codes.int(), (0, 1)).view(64, -1, 2)
    for sign in (1, -1):
        assert int((sign * even).clamp(min=0).sum(dim=2).max()) * 255 <= 32767
    monkeypatch.setattr(torch_int8, "product_saturates", lambda: False)
    assert round_weight(weight).codes.abs().amax(dim=1).eq(127).all()


def test_a_weight_is_rounded_to_the_nearest_step() -> None:
    weight = torch.randn(16, 64)
    weight[3] = 0
    rounded = round_weight(weight)
    apart = (rounded.codes * rounded.scales[:, None] - weight).abs()
    assert (apart <= rounded.scales[:, None] * 0.5001).all()


def test_a_row_is_coded_with_its_own_range_whatever_else_is_in_the_batch() -> None:
    rows = (torch.randn(9, 40) + torch.arange(9)[:, None]) * torch.logspace(-6, 6, 9)[:, None]
    coded = code_rows(rows)
    restored = coded.low + coded.step * coded.codes
    assert ((restored - rows).abs() <= coded.step * 0.501).all()
    for position in range(9):
        alone = code_rows(rows[position : position + 1])
        assert torch.equal(alone.codes[0], coded.codes[position])


def test_coding_leaves_what_it_reads_as_it_was() -> None:
    rows = torch.randn(4, 8)
    before = rows.clone()
    code_rows(rows)
    code_rows(rows, torch.rand(8))
    assert torch.equal(rows, before)


def test_memory_is_written_over_and_a_huge_batch_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_int8, "_MAX_KEPT_VALUES", 100)
    memory = LastRows()
    first, second = (memory.get_buffer(torch.Size(shape), torch.uint8) for shape in ((10, 10), (3, 30)))
    assert first.data_ptr() == second.data_ptr()
    assert memory.get_buffer(torch.Size((11, 10)), torch.uint8).shape == (11, 10)
    assert memory.get_buffer(torch.Size((1, 5)), torch.uint8).data_ptr() == first.data_ptr()


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (1, 11), (2, 3, 4)])
@torch.inference_mode()
def test_an_int8_layer_answers_nearly_as_the_layer_it_stands_for(
    shape: tuple[int, ...], has_bias: bool
) -> None:
    layer = nn.Linear(96, 48, bias=has_bias)
    read = torch.randn(*shape, 96) + 0.5
    found = int8_of(layer)(read)
    assert found.shape == (*shape, 48)
    assert relative_error(found, layer(read)) < 0.02


@torch.inference_mode()
def test_rows_that_are_not_contiguous_are_read_as_they_stand() -> None:
    layer = nn.Linear(32, 8)
    for read in (torch.randn(32, 10).T, torch.randn(10, 64)[:, ::2]):
        assert relative_error(int8_of(layer)(read), layer(read)) < 0.02


@torch.inference_mode()
def test_a_row_of_equal_values_is_computed_exactly_and_one_that_is_no_number_stays_alone() -> None:
    layer = nn.Linear(32, 8)
    read = torch.randn(4, 32)
    read[0], read[1, 5], read[2, 5] = 3.0, torch.nan, torch.inf
    found = int8_of(layer)(read)
    assert relative_error(found[0], layer(read[0])) < 0.02
    assert not found[1].isfinite().any()
    assert not found[2].isfinite().any()
    assert torch.equal(found[3], int8_of(layer)(read[3:])[0])


@torch.inference_mode()
def test_smoothing_changes_nothing_but_rounding() -> None:
    layer = nn.Linear(64, 32)
    read = torch.randn(200, 64)
    read[:, 7] *= 80  # what would set the step for all others
    smoothing = read.abs().amax(dim=0).sqrt()
    plain = relative_error(int8_of(layer)(read), layer(read))
    smoothed = relative_error(int8_of(layer, RowCoder(smoothing, LastRows()))(read), layer(read))
    assert smoothed < 0.5 * plain
    foretold = [measure_rounding_error(read, layer.weight, each) for each in (smoothing, None)]
    assert foretold[0] < 0.5 * foretold[1]


@torch.inference_mode()
def test_layers_that_read_the_same_rows_code_them_once(monkeypatch: pytest.MonkeyPatch) -> None:
    num_coded = 0

    def counted(rows: Tensor, factors: Tensor | None, memory: LastRows) -> torch_int8.CodedRows:
        nonlocal num_coded
        num_coded += 1
        return code_rows(rows, factors, memory)

    monkeypatch.setattr(torch_int8, "code_rows", counted)
    coder = RowCoder(None, LastRows())
    layers = [int8_of(nn.Linear(16, 8), coder) for _ in range(3)]
    for _ in range(2):
        read = torch.randn(4, 16)
        for layer in layers:
            layer(read)
    assert num_coded == 2


def test_layers_shared_by_threads_answer_each_its_own_rows() -> None:
    with torch.inference_mode():
        coder = RowCoder(None, LastRows())
        layers = [int8_of(nn.Linear(64, 64), coder) for _ in range(3)]
        rows = [torch.randn(16, 64) for _ in range(3)]
        expected = [[layer(read) for layer in layers] for read in rows]
    wrong: list[int] = []
    start = threading.Barrier(3)

    def compute(number: int) -> None:
        start.wait()
        with torch.inference_mode():
            for _ in range(100):
                found = [layer(rows[number]) for layer in layers]
                if not all(map(torch.equal, found, expected[number])):
                    wrong.append(number)

    threads = [threading.Thread(target=compute, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
