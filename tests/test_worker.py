from __future__ import annotations

import random
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infinity_emb import worker
from infinity_emb.backends.base import Encoded, Recipe, Rows, SparseRow
from infinity_emb.batching import MIN_SHARED_TOKENS
from infinity_emb.errors import BackendFailed, DeviceOutOfMemory, EngineNotReady, InputTooLong
from infinity_emb.pending import Item, PendingRequest
from infinity_emb.primitives import OutputName
from infinity_emb.worker import WorkerPool

# Everything below is waited for by an event; a wait that takes this long has failed.
PATIENCE_S = 30.0


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that died comes back soon."""
    monkeypatch.setattr(worker, "FIRST_PAUSE_S", 0.0001)


unhurried = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)


# A tiny world: an item is a number, three tokens long, and its row is that number, twice. It has as many
# token rows, and a sparse row with one entry, at that index.


@dataclass
class Device:
    """A backend that computes at once, unless it is told to do something else with the numbers it gets."""

    num_in_flight: int = 1
    shares_device: bool = False
    on_launch: Callable[[list[int]], None] = lambda numbers: None
    on_collect: Callable[[list[int], Rows], Rows] = lambda numbers, rows: rows
    on_prepare: Callable[[], None] = lambda: None
    # For batches that are to be computed in full precision; as the others where they are None.
    on_launch_in_full: Callable[[list[int]], None] | None = None
    on_collect_in_full: Callable[[list[int], Rows], Rows] | None = None
    on_answers: Callable[[dict[OutputName, Any]], Any] = lambda answers: answers
    launched: list[list[int]] = field(default_factory=list)
    launched_in_full: list[list[int]] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)
    num_freed: int = 0

    def prepare_thread(self) -> None:
        self.on_prepare()

    def free_memory(self) -> None:
        self.num_freed += 1

    def launch(self, batch: Sequence[Encoded], *, full_precision: bool = False) -> Launched:
        numbers = [int(item.token_ids[0]) for item in batch]
        self.threads.add(threading.get_ident())
        (self.launched_in_full if full_precision else self.launched).append(numbers)
        on_launch, on_collect = self.on_launch, self.on_collect
        if full_precision:
            on_launch = self.on_launch_in_full or on_launch
            on_collect = self.on_collect_in_full or on_collect
        on_launch(numbers)
        outputs = {name for item in batch for name in item.recipe.outputs}
        return Launched(numbers, outputs, on_collect, self.on_answers)


@dataclass
class Launched:
    numbers: list[int]
    outputs: set[OutputName]
    on_collect: Callable[[list[int], Rows], Rows]
    on_answers: Callable[[dict[OutputName, Any]], Any]

    def collect(self) -> Any:
        rows = np.repeat(np.array(self.numbers, dtype=np.float32)[:, None], 2, axis=1)
        answers: dict[OutputName, Any] = {
            "dense": self.on_collect(self.numbers, rows),
            "multivector": [token_rows_of(number) for number in self.numbers],
            "sparse": [sparse_row_of(number) for number in self.numbers],
        }
        return self.on_answers({name: answers[name] for name in self.outputs})


def token_rows_of(number: int) -> Rows:
    return np.full((number, 2), number, dtype=np.float32)


def sparse_row_of(number: int) -> SparseRow:
    return SparseRow(np.array([number], dtype=np.int32), np.array([number], dtype=np.float32))


class Answers:
    """Requests of the given numbers, and how often each of them was said to be done."""

    def __init__(self, *requests: Sequence[int]) -> None:
        self.numbers = [list(numbers) for numbers in requests]
        self.pending = [PendingRequest(len(numbers), self._note) for numbers in requests]
        self.num_done: Counter[int] = Counter()
        self._changed = threading.Condition()

    def _note(self, request: PendingRequest) -> None:
        with self._changed:
            self.num_done[self.pending.index(request)] += 1
            self._changed.notify_all()

    def items(self, position: int = 0, *outputs: OutputName) -> list[Item]:
        request = self.pending[position]
        recipe = Recipe(outputs=outputs or ("dense",))
        return [
            Item(Encoded(ids_of(number), recipe=recipe), request, row)
            for row, number in enumerate(self.numbers[position])
        ]

    def submit_all(self, pool: WorkerPool) -> None:
        pool.submit([item for position in range(len(self.pending)) for item in self.items(position)])

    def wait(self, *positions: int) -> None:
        """Until these requests have ended; all of them where none is named."""
        wanted = positions or range(len(self.pending))
        with self._changed:
            ended = self._changed.wait_for(lambda: all(self.num_done[each] for each in wanted), PATIENCE_S)
        assert ended, f"only {sorted(self.num_done)} of {len(self.pending)} requests ended"

    def check_rows(self, position: int = 0) -> None:
        request = self.pending[position]
        assert request.error is None
        assert request.columns.keys() == {"dense"}
        rows = request.columns["dense"]
        assert rows.dtype == np.float32
        assert rows.tolist() == [[number, number] for number in self.numbers[position]]

    def errors(self) -> list[Exception | None]:
        return [request.error for request in self.pending]


def ids_of(number: int) -> np.ndarray:
    return np.full(3, number, dtype=np.int32)


def pool_of(*devices: Device, max_batch_items: int = 1000) -> WorkerPool:
    return WorkerPool(devices, max_batch_tokens=1_000_000, max_batch_items=max_batch_items)


def end(pool: WorkerPool) -> None:
    ended = threading.Event()
    pool.close(ended.set)
    assert ended.wait(PATIENCE_S), "the device threads did not end"


@contextmanager
def running(*devices: Device, max_batch_items: int = 1000) -> Iterator[WorkerPool]:
    pool = pool_of(*devices, max_batch_items=max_batch_items)
    pool.start()
    try:
        yield pool
    finally:
        end(pool)


@contextmanager
def working_off(answers: Answers, *devices: Device, max_batch_items: int = 1000) -> Iterator[WorkerPool]:
    """A pool whose threads begin only when all requests wait."""
    gate = Gate()
    for device in devices:
        device.on_prepare = gate
    with running(*devices, max_batch_items=max_batch_items) as pool:
        answers.submit_all(pool)
        gate.is_open.set()
        yield pool


class Gate:
    """Holds a device until it is opened."""

    def __init__(self) -> None:
        self.is_reached = threading.Event()
        self.is_open = threading.Event()

    def __call__(self, *args: object) -> None:
        self.is_reached.set()
        assert self.is_open.wait(PATIENCE_S)

    def wait_until_reached(self) -> None:
        assert self.is_reached.wait(PATIENCE_S)


def fail_on(*bad: int, error: BaseException | None = None) -> Callable[..., Rows]:
    """At launch or at collect: raises for a batch that holds one of these numbers."""

    def check(numbers: list[int], rows: Rows | None = None) -> Rows:
        if set(bad) & set(numbers):
            raise error or RuntimeError("told to fail")
        return rows  # type: ignore[return-value]

    return check


def drop_last_row_on(*bad: int) -> Callable[[list[int], Rows], Rows]:
    return lambda numbers, rows: rows[:-1] if set(bad) & set(numbers) else rows


def nan_on(*bad: int, value: float = np.nan) -> Callable[[list[int], Rows], Rows]:
    return lambda numbers, rows: np.where(np.isin(rows, bad), np.float32(value), rows)


def same_rows(numbers: list[int], rows: Rows) -> Rows:
    return rows


FAULTS = {
    "launch": lambda *bad: {"on_launch": fail_on(*bad)},
    "collect": lambda *bad: {"on_collect": fail_on(*bad)},
    "row count": lambda *bad: {"on_collect": drop_last_row_on(*bad)},
    "NaN": lambda *bad: {"on_collect": nan_on(*bad)},
}
each_fault = pytest.mark.parametrize("fault", FAULTS)
each_depth = pytest.mark.parametrize("num_in_flight", [1, 2])
each_number_of_replicas = pytest.mark.parametrize("num_replicas", [1, 2])


def test_rows_stand_in_the_order_of_their_request() -> None:
    answers = Answers([5, 3, 9], [1], [7, 7])
    with running(Device()) as pool:
        answers.submit_all(pool)
        answers.wait()
    for position in range(3):
        answers.check_rows(position)


@each_fault
@each_depth
@each_number_of_replicas
def test_an_item_that_fails_is_found_by_halving_and_its_neighbours_answer(
    fault: str, num_in_flight: int, num_replicas: int
) -> None:
    devices = [Device(num_in_flight, **FAULTS[fault](6, 13)) for _ in range(num_replicas)]
    answers = Answers(*([number] for number in range(20)))
    with running(*devices) as pool:
        answers.submit_all(pool)
        answers.wait()

    for number in range(20):
        if number in (6, 13):
            assert isinstance(answers.errors()[number], BackendFailed)
        else:
            answers.check_rows(number)
    assert set(answers.num_done.values()) == {1}
    assert (pool.stats.num_items, pool.stats.num_failed_items) == (18, 2)
    assert pool.stats.num_tokens == 18 * 3


def test_an_item_is_not_blamed_before_it_failed_alone() -> None:
    """Where all but one item of a failed batch were cancelled, the last one failed without a second try."""
    answers = Answers([1], [2])

    def fail_while_another_hangs_up(numbers: list[int]) -> None:
        answers.pending[0].cancel()
        fail_on(1)(numbers)

    device = Device(on_launch=fail_while_another_hangs_up)
    with working_off(answers, device):
        answers.wait(1)

    answers.check_rows(1)
    assert device.launched == [[1, 2], [2]]


def test_one_failing_item_fails_its_whole_request_once() -> None:
    answers = Answers([1, 2, 3, 4], [5, 6])
    with running(Device(on_launch=fail_on(2, 3))) as pool:
        answers.submit_all(pool)
        answers.wait()

    assert isinstance(answers.errors()[0], BackendFailed)
    answers.check_rows(1)
    assert set(answers.num_done.values()) == {1}


def test_the_error_tells_what_the_backend_raised() -> None:
    answers = Answers([1])
    with running(Device(on_launch=fail_on(1, error=MemoryError("no room")))) as pool:
        answers.submit_all(pool)
        answers.wait()

    error = answers.errors()[0]
    assert str(error) == "input 0 could not be computed: MemoryError: no room"
    assert isinstance(error, BackendFailed)
    assert isinstance(error.__cause__, MemoryError)


class Tensor:
    """Stands for memory that a pass holds on its device."""


@pytest.mark.parametrize("where", ["on_launch", "on_collect"])
@pytest.mark.parametrize("in_full", [False, True])
def test_what_a_failed_pass_held_is_gone_when_it_is_tried_again_and_answered(
    where: str, in_full: bool
) -> None:
    """An out-of-memory's traceback kept the tensors of the failed pass beside its halves, and those beside
    theirs, so that what would have fitted did not."""
    held: list[weakref.ref[Tensor]] = []
    num_alive: list[int] = []

    def run_out_of_memory(numbers: list[int], rows: Rows | None = None) -> Rows:
        num_alive.append(sum(each() is not None for each in held))
        try:
            tensor = Tensor()
            held.append(weakref.ref(tensor))
            fail_on(1, error=MemoryError("no room"))(numbers)
        except MemoryError as exc:
            raise RuntimeError("out of memory") from exc
        return rows  # type: ignore[return-value]

    broken: dict[str, Any] = {f"{where}_in_full" if in_full else where: run_out_of_memory}
    first = {"on_collect": nan_on(0, 1, 2, 3), "on_collect_in_full": same_rows} if in_full else {}
    answers = Answers([0], [1], [2], [3])
    with working_off(answers, Device(**{**first, **broken})):
        answers.wait()

    assert len(num_alive) == 5
    assert set(num_alive) == {0}
    assert isinstance(answers.errors()[1], BackendFailed)
    assert all(each() is None for each in held)


@pytest.mark.parametrize(
    "fault",
    [
        {"on_collect": fail_on(1), "on_collect_in_full": same_rows},
        {"on_collect": nan_on(0, 1, 2, 3), "on_collect_in_full": fail_on(1)},
    ],
)
def test_a_failed_batch_is_let_go_before_it_is_tried_again(fault: dict[str, Any]) -> None:
    """What a launch gives back holds tensors too."""
    under_way: list[weakref.ref[Launched]] = []
    num_alive: list[int] = []

    class WatchedDevice(Device):
        def launch(self, batch: Sequence[Encoded], *, full_precision: bool = False) -> Launched:
            num_alive.append(sum(each() is not None for each in under_way))
            launched = super().launch(batch, full_precision=full_precision)
            under_way.append(weakref.ref(launched))
            return launched

    answers = Answers([0], [1], [2], [3])
    with working_off(answers, WatchedDevice(**fault)):
        answers.wait()

    assert len(num_alive) >= 5
    assert set(num_alive) == {0}


@pytest.mark.parametrize("name", ["multivector", "sparse"])
def test_an_answer_does_not_keep_the_memory_of_its_whole_batch(name: OutputName) -> None:
    """Ragged and sparse rows are cut out of one array."""
    large = np.ones((1000, 2), dtype=np.float32)
    sparse = SparseRow(np.arange(1000, dtype=np.int32)[:2], large[:, 0][:2])
    device = Device(on_answers=lambda _: {"multivector": [large[:1]], "sparse": [sparse]})
    answers = Answers([1])
    with running(device) as pool:
        pool.submit(answers.items(0, name))
        answers.wait()

    [entry] = answers.pending[0].columns[name]
    for array in entry if isinstance(entry, SparseRow) else [entry]:
        assert array.base is None
        assert len(array) <= 2


def test_an_error_of_this_package_is_passed_on_as_it_is() -> None:
    error = InputTooLong("too long")
    answers = Answers([1])
    with running(Device(on_launch=fail_on(1, error=error))) as pool:
        answers.submit_all(pool)
        answers.wait()

    assert answers.errors() == [error]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda rows: rows.astype(np.float64),
        lambda rows: rows[0],
        lambda rows: np.concatenate([rows, rows]),
        lambda rows: rows.tolist(),
        lambda rows: None,
        lambda rows: [*rows, rows[0]],
        lambda rows: [row.astype(np.float64) for row in rows[None]],
        lambda rows: [SparseRow(np.zeros(1, dtype=np.int32), None)],
    ],
)
def test_an_answer_of_the_wrong_shape_or_type_is_an_error(wrong: Callable[[Rows], object]) -> None:
    answers = Answers([1])
    with running(Device(on_collect=lambda numbers, rows: wrong(rows))) as pool:  # type: ignore[arg-type,return-value]
        answers.submit_all(pool)
        answers.wait()
        assert pool.is_alive

    assert isinstance(answers.errors()[0], BackendFailed)


def test_an_output_that_is_not_answered_is_an_error() -> None:
    answers = Answers([1])
    with running(Device(on_answers=lambda columns: {"sparse": columns["sparse"]})) as pool:
        pool.submit(answers.items(0, "dense", "sparse"))
        answers.wait()

    assert str(answers.errors()[0]) == "input 0 got no 'dense' output from the backend"


# Several outputs


def test_items_that_ask_for_different_outputs_share_a_batch_and_get_what_they_asked_for() -> None:
    """Rows of the same batch that nobody asked for must not end up in a request."""
    answers = Answers([5, 3], [1, 4], [2], [7, 0])
    device = Device(on_prepare=(gate := Gate()))
    with running(device) as pool:
        pool.submit(answers.items(0))
        pool.submit(answers.items(1, "multivector"))
        pool.submit(answers.items(2, "sparse"))
        pool.submit(answers.items(3, "sparse", "dense", "multivector"))
        gate.is_open.set()
        answers.wait()

    assert device.launched == [[5, 3, 1, 4, 2, 7, 0]]
    answers.check_rows(0)
    columns = [request.columns for request in answers.pending]
    assert [sorted(each) for each in columns[1:]] == [
        ["multivector"],
        ["sparse"],
        ["dense", "multivector", "sparse"],
    ]
    assert [rows.tolist() for rows in columns[1]["multivector"]] == [[[1, 1]], [[4, 4]] * 4]
    assert [(row.indices.tolist(), row.values.tolist()) for row in columns[2]["sparse"]] == [([2], [2])]
    assert columns[3]["dense"].tolist() == [[7, 7], [0, 0]]
    assert [rows.shape for rows in columns[3]["multivector"]] == [(7, 2), (0, 2)]
    assert [row.indices.tolist() for row in columns[3]["sparse"]] == [[7], [0]]


@each_number_of_replicas
def test_ragged_columns_that_come_in_several_batches_stand_in_the_order_of_their_request(
    num_replicas: int,
) -> None:
    numbers = [3, 0, 9, 1, 1, 7, 2, 8, 0, 4]
    answers = Answers(numbers, numbers)
    with running(*(Device() for _ in range(num_replicas)), max_batch_items=3) as pool:
        pool.submit(answers.items(0, "multivector", "dense"))
        pool.submit(answers.items(1, "sparse"))
        answers.wait()

    first, second = (request.columns for request in answers.pending)
    assert [len(rows) for rows in first["multivector"]] == numbers
    assert first["dense"][:, 0].tolist() == numbers
    assert [row.indices.item() for row in second["sparse"]] == numbers


@pytest.mark.parametrize("name", ["multivector", "sparse"])
def test_nan_is_found_in_ragged_columns_too(name: OutputName) -> None:
    def spoil(answers: dict[OutputName, Any]) -> dict[OutputName, Any]:
        for entry in answers[name]:
            values = entry.values if isinstance(entry, SparseRow) else entry
            values[values == 3] = np.nan
        return answers

    answers = Answers([1], [3], [0], [2])
    device = Device(on_answers=spoil, on_prepare=(gate := Gate()))
    with running(device) as pool:
        pool.submit([item for position in range(4) for item in answers.items(position, name)])
        gate.is_open.set()
        answers.wait()

    assert [error is None for error in answers.errors()] == [True, False, True, True]
    assert (device.launched, device.launched_in_full) == ([[1, 3, 0, 2]], [[3]])


def test_an_item_costs_what_its_input_says() -> None:
    """Images have few tokens or none of their own, but they are not free."""
    gate = Gate()
    request = PendingRequest(1, lambda _: None)
    image = Encoded(np.zeros(0, dtype=np.int32), features={}, num_tokens=256)
    with running(Device(on_prepare=gate)) as pool:
        pool.submit([Item(image, request, 0)])
        assert pool.num_waiting_tokens == 256
        pool.fail_rest()
        gate.is_open.set()


# What is no number in the model's own format may be one in full precision


@each_depth
@each_number_of_replicas
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_a_number_in_full_precision_is_computed_once_more_and_answered(
    value: float, num_in_flight: int, num_replicas: int
) -> None:
    devices = [
        Device(num_in_flight, on_collect=nan_on(6, 13, value=value), on_collect_in_full=same_rows)
        for _ in range(num_replicas)
    ]
    answers = Answers(*([number] for number in range(20)))
    with running(*devices) as pool:
        answers.submit_all(pool)
        answers.wait()

    for number in range(20):
        answers.check_rows(number)
    assert set(answers.num_done.values()) == {1}
    again = [number for device in devices for batch in device.launched_in_full for number in batch]
    assert sorted(again) == [6, 13]
    assert (pool.stats.num_items, pool.stats.num_failed_items) == (20, 0)
    assert pool.stats.num_tokens == 20 * 3
    assert pool.stats.num_split_batches == 0


def test_what_is_no_number_in_full_precision_either_fails_once_and_names_its_place() -> None:
    device = Device(on_collect=nan_on(7))
    answers = Answers([4, 5, 7, 8], [1, 2], [3])
    with working_off(answers, device) as pool:
        answers.wait()
        assert pool.is_alive

    error = answers.errors()[0]
    assert isinstance(error, BackendFailed)
    assert error.position == 2
    assert str(error) == "input 2 gives NaN or infinity, alone and in float32 too"
    for position in (1, 2):
        answers.check_rows(position)
    assert device.launched == [[4, 5, 7, 8, 1, 2, 3]]
    assert device.launched_in_full == [[7]], "it is retried alone and once"


def test_all_items_of_a_batch_that_are_no_numbers_are_computed_once_more_in_one_launch() -> None:
    """Each launch in full precision copies the whole model."""
    device = Device(on_collect=nan_on(1, 3, 4), on_collect_in_full=nan_on(3))
    answers = Answers([1], [2], [3], [4])
    with working_off(answers, device) as pool:
        answers.wait()

    assert (device.launched, device.launched_in_full) == ([[1, 2, 3, 4]], [[1, 3, 4]])
    for position in (0, 1, 3):
        answers.check_rows(position)
    assert str(answers.errors()[2]) == "input 0 gives NaN or infinity, alone and in float32 too"
    assert (pool.stats.num_items, pool.stats.num_failed_items) == (3, 1)


@pytest.mark.parametrize("where", ["on_launch_in_full", "on_collect_in_full"])
def test_where_the_launch_in_full_precision_raises_each_item_is_tried_once_alone(where: str) -> None:
    device = Device(on_collect=nan_on(1, 3, 4), **{"on_collect_in_full": same_rows, where: fail_on(3)})
    answers = Answers([1], [2], [3], [4])
    with working_off(answers, device):
        answers.wait()

    assert device.launched_in_full == [[1, 3, 4], [1], [3], [4]]
    for position in (0, 1, 3):
        answers.check_rows(position)
    assert str(answers.errors()[2]) == "input 0 could not be computed: RuntimeError: told to fail"
    assert set(answers.num_done.values()) == {1}


def test_neighbours_are_answered_before_an_item_is_computed_once_more() -> None:
    gate = Gate()
    device = Device(on_collect=nan_on(1), on_collect_in_full=same_rows, on_launch_in_full=gate)
    answers = Answers([1], [2], [3])
    with working_off(answers, device):
        answers.wait(1, 2)
        assert answers.num_done[0] == 0
        gate.is_open.set()
        answers.wait()

    for position in range(3):
        answers.check_rows(position)


@pytest.mark.parametrize(
    "fault",
    [
        {"on_launch_in_full": fail_on(1)},
        {"on_collect_in_full": fail_on(1)},
        {"on_collect_in_full": drop_last_row_on(1)},
        {"on_launch_in_full": fail_on(1, error=MemoryError("no room"))},
        {"on_collect_in_full": lambda numbers, rows: rows[:, :1]},
    ],
)
def test_a_second_try_that_fails_ends_its_item_and_not_the_thread(fault: dict[str, Any]) -> None:
    device = Device(on_collect=nan_on(1), **fault)
    answers = Answers([0, 1], [2], [3])
    with working_off(answers, device, max_batch_items=2) as pool:
        answers.wait()
        assert pool.is_alive

    error = answers.errors()[0]
    assert isinstance(error, BackendFailed)
    assert error.position == 1
    for position in (1, 2):
        answers.check_rows(position)
    assert device.launched_in_full == [[1]]
    assert set(answers.num_done.values()) == {1}


def test_a_thread_that_dies_in_a_second_try_leaves_nobody_waiting() -> None:
    device = Device(on_collect=nan_on(1), on_launch_in_full=fail_on(1, error=SystemExit("told to die")))
    answers = Answers([0], [1], [2])
    with working_off(answers, device, max_batch_items=2) as pool:
        answers.wait()
        assert pool.is_ready

    answers.check_rows(0)
    answers.check_rows(2)
    assert isinstance(answers.errors()[1], BackendFailed)
    assert set(answers.num_done.values()) == {1}


def test_a_cancelled_item_is_not_computed_once_more() -> None:
    answers = Answers([1], [2])

    def hang_up(numbers: list[int], rows: Rows) -> Rows:
        answers.pending[0].cancel()
        return nan_on(1)(numbers, rows)

    device = Device(on_collect=hang_up)
    with working_off(answers, device):
        answers.wait(1)

    answers.check_rows(1)
    assert device.launched_in_full == []
    assert answers.num_done == {1: 1}


def test_the_item_to_blame_is_named_by_its_place_in_its_request_wherever_it_was_computed() -> None:
    answers = Answers([0, 1, 2], [3, 4, 5, 6])
    with running(Device(on_launch=fail_on(2, 4)), max_batch_items=2) as pool:
        answers.submit_all(pool)
        answers.wait()

    assert [error.position for error in answers.errors() if isinstance(error, BackendFailed)] == [2, 1]


@pytest.mark.parametrize("other_width", [1, 3])
def test_rows_of_another_dimension_than_before_fail_their_request_and_not_the_thread(
    other_width: int,
) -> None:
    """Storing them raised outside of what was guarded, so that the device thread died; a single value would
    even have been spread over the whole row."""
    widths = iter([2, other_width, 2])
    answers = Answers([1, 2], [3])
    device = Device(on_collect=lambda numbers, rows: np.zeros((len(rows), next(widths)), dtype=np.float32))
    with running(device, max_batch_items=1) as pool:
        answers.submit_all(pool)
        answers.wait()
        assert pool.is_alive

    assert isinstance(answers.errors()[0], BackendFailed)
    assert answers.errors()[1] is None


@each_depth
@each_number_of_replicas
@pytest.mark.parametrize("where", ["on_launch", "on_collect"])
def test_a_thread_that_dies_over_and_over_fails_everything_that_waits_or_is_under_way(
    num_in_flight: int, num_replicas: int, where: str
) -> None:
    """The batch that was being collected behind another one was forgotten; its request waited forever."""
    devices = [
        Device(num_in_flight, **{where: fail_on(*range(100), error=SystemExit("told to die"))})
        for _ in range(num_replicas)
    ]
    answers = Answers(*([number] for number in range(40)))
    with working_off(answers, *devices, max_batch_items=4) as pool:
        answers.wait()
        assert not pool.is_alive

    errors = answers.errors()
    assert all(isinstance(error, (EngineNotReady, BackendFailed)) for error in errors)
    assert all("SystemExit('told to die')" in str(error) for error in errors)
    assert any(isinstance(error, EngineNotReady) for error in errors), "in the end it stays dead"
    assert set(answers.num_done.values()) == {1}
    assert (pool.stats.num_failed_items, pool.stats.num_items) == (40, 0)


@each_depth
@pytest.mark.parametrize("where", ["on_launch", "on_collect"])
def test_an_item_that_ends_the_thread_fails_alone_and_the_thread_comes_back(
    num_in_flight: int, where: str
) -> None:
    answers = Answers([1, 2], [3], [13], [4])
    device = Device(num_in_flight, **{where: fail_on(13, error=SystemExit("told to die"))})
    with working_off(answers, device) as pool:
        answers.wait()
        assert pool.is_ready

    for position in (0, 1, 3):
        answers.check_rows(position)
    error = answers.errors()[2]
    assert isinstance(error, BackendFailed)
    assert "told to die" in str(error)
    assert pool.stats.num_restarts == 2  # with its neighbours, and alone
    assert (pool.stats.num_items, pool.stats.num_failed_items) == (4, 1)


def test_a_thread_that_has_come_back_computes_what_waits_and_what_comes() -> None:
    has_died = threading.Event()

    def die_once(numbers: list[int]) -> None:
        if not has_died.is_set():
            has_died.set()
            raise SystemExit("told to die")

    answers = Answers([1, 2, 3], [4])
    with working_off(answers, Device(on_launch=die_once), max_batch_items=2) as pool:
        answers.wait()
        later = Answers([5])
        later.submit_all(pool)
        later.wait()

    for position in (0, 1):
        answers.check_rows(position)
    later.check_rows()
    assert (pool.stats.num_restarts, pool.stats.num_retried_items) == (1, 2)


def test_while_a_thread_is_down_the_pool_is_not_ready_and_takes_what_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker, "FIRST_PAUSE_S", PATIENCE_S)
    answers = Answers([1], [2])
    has_died = threading.Event()
    pool = pool_of(Device(on_launch=fail_on(1, error=SystemExit("told to die"))))
    pool.start()
    try:
        assert pool.is_ready
        pool.submit(answers.items(0))
        answers.wait(0)
        while pool.is_ready:
            has_died.wait(0.001)
        assert pool.is_alive
        pool.submit(answers.items(1))
    finally:
        end(pool)  # does not wait for the end of the pause

    answers.check_rows(1)


def test_pauses_grow_and_a_batch_that_succeeds_makes_them_short_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker, "FIRST_PAUSE_S", 0.001)
    deadly = fail_on(*range(1, 4), error=SystemExit("told to die"))
    answers = Answers([1], [2], [3], [4], [1])
    with working_off(answers, Device(on_launch=deadly), max_batch_items=1):
        answers.wait()

    pauses = [record.args[1] for record in caplog.records if "comes back in" in record.msg]  # type: ignore[index]
    assert pauses == [0.001, 0.002, 0.004, 0.001]


def test_after_it_died_for_good_new_items_are_refused_with_the_reason_and_it_is_told_once() -> None:
    num_told = 0

    def note() -> None:
        nonlocal num_told
        num_told += 1

    numbers = range(worker.MAX_DEATHS_IN_A_ROW + 1)
    answers = Answers(*([number] for number in numbers), [99])
    device = Device(on_launch=fail_on(*numbers, error=SystemExit("told to die")))
    pool = WorkerPool([device], max_batch_tokens=100, max_batch_items=1, on_death=note)
    pool.start()
    try:
        for number in numbers:
            pool.submit(answers.items(number))
        answers.wait(*numbers)
        assert not pool.is_alive
        with pytest.raises(EngineNotReady, match="told to die"):
            pool.submit(answers.items(len(numbers)))
    finally:
        end(pool)
    assert num_told == 1


def test_a_batch_that_never_returns_ends_the_pool_and_leaves_nobody_waiting() -> None:
    told = threading.Event()
    gate = Gate()
    answers = Answers([1], [2])
    pool = WorkerPool(
        [Device(on_launch=gate)],
        max_batch_tokens=100,
        max_batch_items=1,
        batch_timeout_s=0.05,
        on_death=told.set,
    )
    pool.start()
    try:
        answers.submit_all(pool)
        answers.wait()
        assert told.wait(PATIENCE_S)
        assert not pool.is_alive
        assert all("took over 0.05 s" in str(error) for error in answers.errors())
        with pytest.raises(EngineNotReady):
            pool.submit(answers.items(0))
    finally:
        gate.is_open.set()
        end(pool)
    assert set(answers.num_done.values()) == {1}, "rows that come too late are dropped"


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_a_pool_that_waits_for_work_is_not_taken_for_one_that_hangs(fault: str | None) -> None:
    """After a batch that was answered, and after one that failed."""
    answers = Answers([1])
    device = Device(**FAULTS[fault](1)) if fault else Device()
    pool = WorkerPool([device], max_batch_tokens=100, max_batch_items=1, batch_timeout_s=0.02)
    pool.start()
    try:
        answers.submit_all(pool)
        answers.wait()
        assert not threading.Event().wait(0.1), "five times as long as a batch may take"
        assert pool.is_alive
    finally:
        end(pool)


@pytest.mark.parametrize("where", ["on_launch", "on_collect"])
@pytest.mark.parametrize("error", [DeviceOutOfMemory("is too large"), MemoryError()])
def test_what_does_not_fit_into_memory_is_computed_in_smaller_batches(where: str, error: Exception) -> None:
    def check(numbers: list[int], rows: Rows | None = None) -> Rows:
        if len(numbers) > 4:
            raise error
        return rows  # type: ignore[return-value]

    answers = Answers(list(range(40)), list(range(40)))
    device = Device(**{where: check})
    with working_off(answers, device) as pool:
        answers.wait()

    for position in (0, 1):
        answers.check_rows(position)
    assert device.num_freed == pool.stats.num_out_of_memory >= 1
    assert pool.stats.num_failed_items == 0


def test_an_item_that_does_not_fit_alone_fails_by_name() -> None:
    def check(numbers: list[int]) -> None:
        if 7 in numbers:
            raise DeviceOutOfMemory("does not fit into the device's memory")

    answers = Answers([5, 6, 7, 8])
    with working_off(answers, Device(on_launch=check)):
        answers.wait()

    assert str(answers.errors()[0]) == "input 2 does not fit into the device's memory"


def test_a_thread_that_cannot_be_prepared_fails_what_waits() -> None:
    gate = Gate()

    def prepare() -> None:
        gate()
        raise RuntimeError("no such device")

    answers = Answers([1])
    with running(Device(on_prepare=prepare)) as pool:
        answers.submit_all(pool)
        gate.is_open.set()
        answers.wait()

    assert isinstance(answers.errors()[0], EngineNotReady)
    assert "no such device" in str(answers.errors()[0])


def test_when_one_of_two_replicas_stays_dead_the_other_still_answers_what_it_computes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A death fails what waits and what the dead replica held; the engine as a whole refuses from then on."""
    monkeypatch.setattr(worker, "MAX_DEATHS_IN_A_ROW", 0)
    gate = Gate()
    answers = Answers([1], [2], [3])
    slow = Device(on_launch=gate)
    dying = Device(on_launch=fail_on(2, error=SystemExit("told to die")))
    dying_may_start = Gate()
    dying.on_prepare = dying_may_start
    with running(slow, dying, max_batch_items=1) as pool:
        pool.submit(answers.items(0))
        gate.wait_until_reached()
        pool.submit(answers.items(1) + answers.items(2))
        dying_may_start.is_open.set()
        answers.wait(1, 2)
        assert answers.num_done[0] == 0
        gate.is_open.set()
        answers.wait(0)
        with pytest.raises(EngineNotReady):
            pool.submit(answers.items(0))

    answers.check_rows(0)
    assert all(isinstance(error, EngineNotReady) for error in answers.errors()[1:])
    assert (slow.launched, dying.launched) == ([[1]], [[2]])


@each_depth
@each_number_of_replicas
def test_closing_finishes_what_was_accepted_and_refuses_the_rest(
    num_in_flight: int, num_replicas: int
) -> None:
    gate = Gate()
    answers = Answers(*([number] for number in range(30)))
    pool = pool_of(*(Device(num_in_flight, on_launch=gate) for _ in range(num_replicas)), max_batch_items=4)
    pool.start()
    answers.submit_all(pool)
    ended = threading.Event()
    pool.close(ended.set)

    with pytest.raises(EngineNotReady, match="shutting down"):
        pool.submit(Answers([99]).items())
    assert not ended.is_set()
    gate.is_open.set()
    answers.wait()
    assert ended.wait(PATIENCE_S)
    for position in range(30):
        answers.check_rows(position)
    assert pool.fail_rest() == 0


@each_depth
@each_number_of_replicas
@pytest.mark.parametrize("where", ["on_launch", "on_collect"])
def test_a_device_that_hangs_does_not_keep_its_items_from_failing_at_the_deadline(
    num_in_flight: int, num_replicas: int, where: str
) -> None:
    """What was under way on the device was neither finished nor failed: its requests waited forever."""
    gates = [Gate() for _ in range(num_replicas)]

    def hang(gate: Gate) -> Callable[..., Rows]:
        def hold(numbers: list[int], rows: Rows | None = None) -> Rows:
            gate()
            return rows  # type: ignore[return-value]

        return hold

    pool = pool_of(*(Device(num_in_flight, **{where: hang(gate)}) for gate in gates), max_batch_items=4)
    answers = Answers(*([number] for number in range(30)))
    pool.start()
    answers.submit_all(pool)
    for gate in gates:
        gate.wait_until_reached()
    ended = threading.Event()
    pool.close(ended.set)

    assert pool.fail_rest() == 30
    answers.wait()
    assert all(isinstance(error, EngineNotReady) for error in answers.errors())
    assert pool.fail_rest() == 0
    assert not ended.is_set()
    for gate in gates:
        gate.is_open.set()
    assert ended.wait(PATIENCE_S)
    assert set(answers.num_done.values()) == {1}, "a row that comes too late is dropped"
    assert (pool.stats.num_items, pool.stats.num_failed_items) == (0, 30)


def test_a_pool_starts_again_after_it_ended() -> None:
    device = Device()
    pool = pool_of(device)
    for number in range(3):
        answers = Answers([number])
        pool.start()
        answers.submit_all(pool)
        answers.wait()
        answers.check_rows()
        end(pool)

    assert pool.stats.num_items == 3


def test_a_pool_whose_thread_died_starts_again() -> None:
    device = Device(on_launch=fail_on(1, error=SystemExit("told to die")))
    pool = pool_of(device)
    for number in (1, 2):
        answers = Answers([number])
        pool.start()
        answers.submit_all(pool)
        answers.wait()
        end(pool)

    answers.check_rows()


def test_a_pool_does_not_start_beside_a_thread_that_still_runs() -> None:
    """Two threads would use one replica, which no backend allows."""
    gate = Gate()
    answers = Answers([1])
    pool = pool_of(Device(on_launch=gate))
    pool.start()
    answers.submit_all(pool)
    gate.wait_until_reached()
    pool.fail_rest()

    with pytest.raises(EngineNotReady, match="still running"):
        pool.start()
    gate.is_open.set()
    end(pool)
    pool.start()
    end(pool)


def test_items_are_refused_before_the_start() -> None:
    with pytest.raises(EngineNotReady, match="not started"):
        pool_of(Device()).submit(Answers([1]).items())


def test_idle_replicas_share_what_comes_and_each_is_used_by_one_thread() -> None:
    both_compute = threading.Barrier(2)
    devices = [Device(on_launch=lambda numbers: void(both_compute.wait(PATIENCE_S))) for _ in range(2)]
    answers = Answers(*([number] for number in range(1000)))
    with running(*devices) as pool:
        wait_until(lambda: pool._num_idle == 2)
        answers.submit_all(pool)
        answers.wait()

    assert [[len(batch) for batch in device.launched] for device in devices] == [[500], [500]]
    assert [len(device.threads) for device in devices] == [1, 1]


def test_on_a_shared_device_a_few_items_wait_for_the_batch_beside_them() -> None:
    """They would slow that batch down more than they gain; two idle replicas must not change that."""
    gate = Gate()
    devices = [Device(shares_device=True, on_launch=gate) for _ in range(2)]
    answers = Answers(list(range(10)), [99])
    with running(*devices) as pool:
        pool.submit(answers.items(0))
        gate.wait_until_reached()
        pool.submit(answers.items(1))
        wait_until(lambda: pool._num_idle == 1)
        assert pool.num_waiting == 1
        gate.is_open.set()
        answers.wait()

    assert sorted(devices[0].launched + devices[1].launched) == [list(range(10)), [99]]
    answers.check_rows(1)


def test_on_a_shared_device_much_work_is_computed_beside_a_batch() -> None:
    both_compute = threading.Barrier(2)
    devices = [
        Device(shares_device=True, on_launch=lambda numbers: void(both_compute.wait(PATIENCE_S)))
        for _ in range(2)
    ]
    many = list(range(MIN_SHARED_TOKENS))
    answers = Answers(many, many)
    with running(*devices, max_batch_items=len(many)) as pool:
        answers.submit_all(pool)
        answers.wait()


def void(_: object) -> None:
    return None


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline_s
        threading.Event().wait(0.001)


def test_with_two_in_flight_the_next_batch_is_launched_before_the_first_is_collected() -> None:
    order: list[tuple[str, list[int]]] = []
    device = Device(
        2,
        on_launch=lambda numbers: order.append(("launch", numbers)),
        on_collect=lambda numbers, rows: (order.append(("collect", numbers)), rows)[1],
    )
    answers = Answers([1], [2], [3])
    with working_off(answers, device, max_batch_items=1):
        answers.wait()

    assert order == [
        ("launch", [1]),
        ("launch", [2]),
        ("collect", [1]),
        ("launch", [3]),
        ("collect", [2]),
        ("collect", [3]),
    ]


def test_a_cancelled_request_is_never_announced_and_what_waits_never_reaches_the_device() -> None:
    gate = Gate()
    device = Device(on_launch=gate)
    answers = Answers([1, 2], [3], [4])
    with running(device, max_batch_items=2) as pool:
        pool.submit(answers.items(0))
        gate.wait_until_reached()
        pool.submit(answers.items(1) + answers.items(2))
        answers.pending[0].cancel()
        answers.pending[1].cancel()
        gate.is_open.set()
        answers.wait(2)

    answers.check_rows(2)
    assert device.launched == [[1, 2], [4]]
    assert answers.num_done == {2: 1}
    assert pool.stats.num_failed_items == 0


def test_cancelled_items_do_not_count_as_failed_at_the_deadline() -> None:
    gate = Gate()
    answers = Answers([1], [2], [3])
    with running(Device(on_launch=gate), max_batch_items=1) as pool:
        answers.submit_all(pool)
        gate.wait_until_reached()
        answers.pending[2].cancel()
        assert pool.fail_rest() == 2
        gate.is_open.set()

    assert answers.num_done == {0: 1, 1: 1}


def test_a_failed_request_takes_its_waiting_items_out_of_the_queue() -> None:
    device = Device(on_launch=fail_on(1))
    answers = Answers([1, 2, 3], [4])
    with working_off(answers, device, max_batch_items=1):
        answers.wait()

    assert device.launched == [[1], [4]]


def test_progress_adds_up_to_the_items_of_the_request() -> None:
    steps: list[int] = []
    is_done = threading.Event()
    request = PendingRequest(10, lambda _: is_done.set(), steps.append)
    with running(Device(), max_batch_items=4) as pool:
        pool.submit([Item(Encoded(ids_of(number)), request, number) for number in range(10)])
        assert is_done.wait(PATIENCE_S)

    assert sum(steps) == 10
    assert len(steps) >= 3


def test_the_queue_is_counted_in_items_and_tokens() -> None:
    gate = Gate()
    with running(Device(on_prepare=gate)) as pool:
        Answers([1, 2], [3]).submit_all(pool)
        assert (pool.num_waiting, pool.num_waiting_tokens) == (3, 9)
        assert pool.fail_rest() == 3
        assert (pool.num_waiting, pool.num_waiting_tokens) == (0, 0)
        gate.is_open.set()


# Anything may go wrong at once, with many threads submitting.

KINDS = ("fine", "NaN in half", *FAULTS)
ANSWERED = ("fine", "NaN in half")


@unhurried
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=60),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=60),
    num_replicas=st.integers(1, 2),
    num_in_flight=st.integers(1, 2),
    shares_device=st.booleans(),
    max_batch_items=st.integers(1, 8),
    num_threads=st.integers(1, 6),
    seed=st.integers(0, 1000),
)
def test_every_item_ends_once_whatever_goes_wrong(
    kinds: list[str],
    sizes: list[int],
    num_replicas: int,
    num_in_flight: int,
    shares_device: bool,
    max_batch_items: int,
    num_threads: int,
    seed: int,
) -> None:
    bad = {kind: [number for number, each in enumerate(kinds) if each == kind] for kind in KINDS}
    answers = Answers(*requests_of(list(range(len(kinds))), sizes))
    with running(
        *(faulty_device(bad, num_in_flight, shares_device) for _ in range(num_replicas)),
        max_batch_items=max_batch_items,
    ) as pool:
        submit_from_threads(pool, answers, num_threads, seed)
        answers.wait()
        assert pool.is_alive

    assert set(answers.num_done.values()) == {1}
    for position, numbers in enumerate(answers.numbers):
        if all(kinds[number] in ANSWERED for number in numbers):
            answers.check_rows(position)
        else:
            error = answers.errors()[position]
            assert isinstance(error, BackendFailed)
            assert error.position is not None
            assert kinds[numbers[error.position]] not in ANSWERED
    num_alone = sum(len(numbers) == 1 for numbers in answers.numbers)
    assert pool.stats.num_items + pool.stats.num_failed_items <= len(kinds)
    if num_alone == len(answers.numbers):
        num_answered = sum(kind in ANSWERED for kind in kinds)
        assert pool.stats.num_items == num_answered
        assert pool.stats.num_failed_items == len(kinds) - num_answered


@unhurried
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=60),
    deadly=st.integers(0, 59),
    dies_at_launch=st.booleans(),
    num_replicas=st.integers(1, 2),
    num_in_flight=st.integers(1, 2),
    max_batch_items=st.integers(1, 8),
    num_threads=st.integers(1, 6),
    seed=st.integers(0, 1000),
)
def test_every_item_ends_once_even_when_a_thread_dies_and_comes_back(
    sizes: list[int],
    deadly: int,
    dies_at_launch: bool,
    num_replicas: int,
    num_in_flight: int,
    max_batch_items: int,
    num_threads: int,
    seed: int,
) -> None:
    where = "on_launch" if dies_at_launch else "on_collect"
    death = fail_on(deadly, error=SystemExit("told to die"))
    answers = Answers(*requests_of(list(range(60)), sizes))
    with running(
        *(Device(num_in_flight, **{where: death}) for _ in range(num_replicas)),
        max_batch_items=max_batch_items,
    ) as pool:
        submit_from_threads(pool, answers, num_threads, seed)
        answers.wait()
        assert pool.is_alive

    assert set(answers.num_done.values()) == {1}
    for position, numbers in enumerate(answers.numbers):
        if deadly in numbers:
            error = answers.errors()[position]
            assert isinstance(error, BackendFailed)
            assert error.position == numbers.index(deadly), "only the item to blame fails"
        else:
            answers.check_rows(position)
    assert pool.stats.num_failed_items == 1


def requests_of(numbers: list[int], sizes: list[int]) -> list[list[int]]:
    """The numbers in requests of these sizes, over and over."""
    requests = []
    for position in range(len(numbers)):
        size = sizes[position % len(sizes)]
        requests.append(numbers[:size])
        numbers = numbers[size:]
    return [request for request in requests if request]


def faulty_device(bad: dict[str, list[int]], num_in_flight: int, shares_device: bool) -> Device:
    def collect_in_full(numbers: list[int], rows: Rows) -> Rows:
        rows = nan_on(*bad["NaN"])(numbers, rows)
        rows = fail_on(*bad["collect"])(numbers, rows)
        return drop_last_row_on(*bad["row count"])(numbers, rows)

    def collect(numbers: list[int], rows: Rows) -> Rows:
        return collect_in_full(numbers, nan_on(*bad["NaN in half"])(numbers, rows))

    return Device(
        num_in_flight,
        shares_device,
        on_launch=fail_on(*bad["launch"]),
        on_collect=collect,
        on_collect_in_full=collect_in_full,
    )


def submit_from_threads(pool: WorkerPool, answers: Answers, num_threads: int, seed: int) -> set[int]:
    """Each thread submits some requests, item by item or at once. Returns those that were refused whole."""
    positions = list(range(len(answers.pending)))
    random.Random(seed).shuffle(positions)
    refused: set[int] = set()

    def submit(mine: list[int]) -> None:
        for position in mine:
            try:
                pool.submit(answers.items(position))
            except EngineNotReady:
                refused.add(position)

    threads = [
        threading.Thread(target=submit, args=(positions[number::num_threads],))
        for number in range(num_threads)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    return refused
