"""Outputs reach their requests: in order, complete, and of the right shape."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest

from infinity_emb.errors import BackendFailed
from infinity_emb.items import Encoded, Float32Array, SparseVector
from infinity_emb.scheduling.requests import Item, PendingRequest
from infinity_emb.types import OutputName
from tests.scheduling.pools import Requests, each_num_replicas, running_pool
from tests.support.event_loop import PATIENCE_S
from tests.support.gated_backend import Gate
from tests.support.scripted_backend import ScriptedBackend, encode_number


def test_outputs_are_in_the_order_of_their_request() -> None:
    requests = Requests([5, 3, 9], [1], [7, 7])
    with running_pool(ScriptedBackend()) as pool:
        requests.submit_to(pool)
        requests.wait()
    for index in range(3):
        requests.check_outputs(index)


@pytest.mark.parametrize("name", ["multivector", "sparse"])
def test_an_output_does_not_keep_the_memory_of_its_batch(name: OutputName) -> None:
    """Outputs of varying length are views of one array."""
    large = np.ones((1000, 2), dtype=np.float32)
    sparse = SparseVector(np.arange(1000, dtype=np.int32)[:2], large[:, 0][:2])
    backend = ScriptedBackend(on_outputs=lambda _: {"multivector": [large[:1]], "sparse": [sparse]})
    requests = Requests([1])
    with running_pool(backend) as pool:
        pool.queue.submit(requests.items(0, name))
        requests.wait()

    [entry] = requests.pending[0].outputs[name]
    for array in entry if isinstance(entry, SparseVector) else [entry]:
        assert array.base is None
        assert len(array) <= 2


@pytest.mark.parametrize(
    "wrong",
    [
        lambda vectors: vectors.astype(np.float64),
        lambda vectors: vectors[0],
        lambda vectors: np.concatenate([vectors, vectors]),
        lambda vectors: vectors.tolist(),
        lambda vectors: None,
        lambda vectors: [*vectors, vectors[0]],
        lambda vectors: [vectors.astype(np.float64)],
        lambda vectors: [SparseVector(np.zeros(1, dtype=np.int32), None)],
    ],
)
def test_outputs_of_the_wrong_shape_or_type_are_an_error(wrong: Callable[[Float32Array], object]) -> None:
    requests = Requests([1])
    with running_pool(ScriptedBackend(on_result=lambda _, vectors: wrong(vectors))) as pool:
        requests.submit_to(pool)
        requests.wait()
        assert pool.is_alive

    assert isinstance(requests.errors()[0], BackendFailed)


def test_a_missing_output_is_an_error() -> None:
    requests = Requests([1])
    with running_pool(ScriptedBackend(on_outputs=lambda outputs: {"sparse": outputs["sparse"]})) as pool:
        pool.queue.submit(requests.items(0, "dense", "sparse"))
        requests.wait()

    assert str(requests.errors()[0]) == "input 0 got no 'dense' output from the backend"


def test_items_with_different_outputs_share_a_batch_and_get_only_their_own() -> None:
    """A request must not get outputs that only others in its batch asked for."""
    requests = Requests([5, 3], [1, 4], [2], [7, 0])
    backend = ScriptedBackend(on_prepare=(gate := Gate()))
    with running_pool(backend) as pool:
        pool.queue.submit(requests.items(0))
        pool.queue.submit(requests.items(1, "multivector"))
        pool.queue.submit(requests.items(2, "sparse"))
        pool.queue.submit(requests.items(3, "sparse", "dense", "multivector"))
        gate.open()
        requests.wait()

    assert backend.launched == [[5, 3, 1, 4, 2, 7, 0]]
    requests.check_outputs(0)
    outputs = [request.outputs for request in requests.pending]
    assert [sorted(names) for names in outputs[1:]] == [
        ["multivector"],
        ["sparse"],
        ["dense", "multivector", "sparse"],
    ]
    assert [vectors.tolist() for vectors in outputs[1]["multivector"]] == [[[1, 1]], [[4, 4]] * 4]
    assert [(row.indices.tolist(), row.values.tolist()) for row in outputs[2]["sparse"]] == [([2], [2])]
    assert outputs[3]["dense"].tolist() == [[7, 7], [0, 0]]
    assert [vectors.shape for vectors in outputs[3]["multivector"]] == [(7, 2), (0, 2)]
    assert [row.indices.tolist() for row in outputs[3]["sparse"]] == [[7], [0]]


@each_num_replicas
def test_outputs_of_varying_length_from_several_batches_are_in_the_order_of_their_request(
    num_replicas: int,
) -> None:
    numbers = [3, 0, 9, 1, 1, 7, 2, 8, 0, 4]
    requests = Requests(numbers, numbers)
    with running_pool(*(ScriptedBackend() for _ in range(num_replicas)), max_batch_items=3) as pool:
        pool.queue.submit(requests.items(0, "multivector", "dense"))
        pool.queue.submit(requests.items(1, "sparse"))
        requests.wait()

    first, second = (request.outputs for request in requests.pending)
    assert [len(vectors) for vectors in first["multivector"]] == numbers
    assert first["dense"][:, 0].tolist() == numbers
    assert [row.indices.item() for row in second["sparse"]] == numbers


def test_an_item_costs_the_tokens_that_its_input_declares() -> None:
    """Images have few token ids or none, but they are not free."""
    gate = Gate()
    request = PendingRequest(1, lambda _: None)
    image = Encoded(np.zeros(0, dtype=np.int32), features={}, media_tokens=256)
    with running_pool(ScriptedBackend(on_prepare=gate)) as pool:
        pool.queue.submit([Item(image, request, 0)])
        assert pool.queue.num_tokens == 256
        pool.fail_all()
        gate.open()


@pytest.mark.parametrize("other_width", [1, 3])
def test_a_batch_of_another_dimension_fails_its_request_but_not_the_thread(other_width: int) -> None:
    """Storing the vectors once crashed the thread; a single value was even broadcast to the whole vector."""
    widths = iter([2, other_width, 2])
    requests = Requests([1, 2], [3])
    backend = ScriptedBackend(on_result=lambda numbers, _: np.zeros((len(numbers), next(widths)), np.float32))
    with running_pool(backend, max_batch_items=1) as pool:
        requests.submit_to(pool)
        requests.wait()
        assert pool.is_alive

    assert isinstance(requests.errors()[0], BackendFailed)
    assert requests.errors()[1] is None


def test_reported_progress_adds_up_to_the_items_of_the_request() -> None:
    steps: list[int] = []
    is_done = threading.Event()
    request = PendingRequest(10, lambda _: is_done.set(), steps.append)
    with running_pool(ScriptedBackend(), max_batch_items=4) as pool:
        pool.queue.submit([Item(encode_number(number), request, number) for number in range(10)])
        assert is_done.wait(PATIENCE_S)

    assert sum(steps) == 10
    assert len(steps) >= 3


def test_the_queue_counts_its_items_and_tokens() -> None:
    gate = Gate()
    with running_pool(ScriptedBackend(on_prepare=gate)) as pool:
        Requests([1, 2], [3]).submit_to(pool)
        assert (len(pool.queue), pool.queue.num_tokens) == (3, 9)
        assert pool.fail_all() == 3
        assert (len(pool.queue), pool.queue.num_tokens) == (0, 0)
        gate.open()
