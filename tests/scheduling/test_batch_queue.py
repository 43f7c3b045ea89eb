from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from infinity_emb.scheduling.batch_queue import (
    MAX_PASSED_OVER,
    MIN_SHARED_TOKENS,
    BatchQueue,
)
from infinity_emb.scheduling.fair_queue import Flow

DEFAULT_FLOW = Flow()
# The machine may be busy, and no rule depends on time.
no_deadline = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@dataclass(eq=False)
class QueuedText:
    num_tokens: int
    is_cancelled: bool = False
    flow: Flow = DEFAULT_FLOW


def make_texts(*sizes: int) -> list[QueuedText]:
    return [QueuedText(size) for size in sizes]


def make_queue(texts: list[QueuedText], *, tokens: int = 100, items: int = 1000) -> BatchQueue[QueuedText]:
    queue: BatchQueue[QueuedText] = BatchQueue(max_batch_tokens=tokens, max_batch_items=items)
    queue.add(texts)
    return queue


def peek(queue: BatchQueue[QueuedText]) -> list[QueuedText]:
    """Return the queued items: take them out and add them again."""
    texts = queue.take_all()
    queue.add(texts)
    return texts


def get_sizes(batch: list[QueuedText]) -> list[int]:
    return [text.num_tokens for text in batch]


def take_until_empty(queue: BatchQueue[QueuedText], *, num_idle: int = 1) -> list[list[QueuedText]]:
    batches = []
    while batch := queue.take_batch(num_idle_replicas=num_idle):
        batches.append(batch)
    return batches


SIZES = st.lists(st.integers(0, 700), max_size=120)
TOKENS = st.integers(1, 600)
ITEMS = st.integers(1, 20)
IDLE = st.integers(1, 5)


@no_deadline
@given(SIZES, TOKENS, ITEMS, IDLE)
def test_every_item_leaves_exactly_once(sizes: list[int], tokens: int, items: int, idle: int) -> None:
    texts = make_texts(*sizes)
    batches = take_until_empty(make_queue(texts, tokens=tokens, items=items), num_idle=idle)

    left = [id(text) for batch in batches for text in batch]
    assert sorted(left) == sorted(map(id, texts))


@no_deadline
@given(SIZES, TOKENS, ITEMS, IDLE)
def test_no_batch_exceeds_a_limit_unless_it_is_one_oversize_item(
    sizes: list[int], tokens: int, items: int, idle: int
) -> None:
    for batch in take_until_empty(make_queue(make_texts(*sizes), tokens=tokens, items=items), num_idle=idle):
        assert 1 <= len(batch) <= items
        assert len(batch) == 1 or sum(get_sizes(batch)) <= tokens


@no_deadline
@given(SIZES, TOKENS, ITEMS, IDLE)
def test_items_leave_in_order_and_the_others_keep_their_places(
    sizes: list[int], tokens: int, items: int, idle: int
) -> None:
    texts = make_texts(*sizes)
    index_by_id = {id(text): position for position, text in enumerate(texts)}
    queue = make_queue(texts, tokens=tokens, items=items)
    while batch := queue.take_batch(num_idle_replicas=idle):
        for group in (batch, peek(queue)):
            assert all(index_by_id[id(first)] < index_by_id[id(second)] for first, second in pairwise(group))


@no_deadline
@given(SIZES, TOKENS, ITEMS, IDLE)
def test_an_item_waits_for_at_most_as_many_batches_as_there_are_items_before_it(
    sizes: list[int], tokens: int, items: int, idle: int
) -> None:
    texts = make_texts(*sizes)
    batches = take_until_empty(make_queue(texts, tokens=tokens, items=items), num_idle=idle)

    batch_by_id = {id(text): number for number, batch in enumerate(batches) for text in batch}
    for position, text in enumerate(texts):
        assert batch_by_id[id(text)] <= position


@no_deadline
@given(st.lists(st.tuples(st.integers(0, 700), st.booleans()), max_size=120), TOKENS, ITEMS, IDLE)
def test_cancelled_items_never_leave_and_delay_no_other(
    sizes: list[tuple[int, bool]], tokens: int, items: int, idle: int
) -> None:
    texts = [QueuedText(size, is_cancelled) for size, is_cancelled in sizes]
    queue = make_queue(texts, tokens=tokens, items=items)
    batches = take_until_empty(queue, num_idle=idle)

    left = [text for batch in batches for text in batch]
    assert {id(text) for text in left} == {id(text) for text in texts if not text.is_cancelled}
    assert (len(queue), queue.num_tokens) == (0, 0)


@no_deadline
@given(SIZES, TOKENS, ITEMS, IDLE)
def test_the_token_counter_is_the_sum_of_the_queued_items(
    sizes: list[int], tokens: int, items: int, idle: int
) -> None:
    queue = make_queue(make_texts(*sizes), tokens=tokens, items=items)
    assert queue.num_tokens == sum(sizes)
    while queue.take_batch(num_idle_replicas=idle):
        counted = queue.num_tokens
        assert counted == sum(get_sizes(peek(queue)))
    assert queue.num_tokens == 0


@no_deadline
@given(SIZES, TOKENS, st.integers(1, 5))
def test_idle_replicas_share_the_queued_items(sizes: list[int], tokens: int, replicas: int) -> None:
    """Each takes at most its share, unless that or the rest is too small to be worth a batch."""
    queue = make_queue(make_texts(*sizes), tokens=tokens)
    for num_idle in range(replicas, 0, -1):
        share = max(-(-queue.num_tokens // num_idle), MIN_SHARED_TOKENS)
        batch = queue.take_batch(num_idle_replicas=num_idle)
        assert len(batch) <= 1 or sum(get_sizes(batch)) <= min(share + MIN_SHARED_TOKENS, tokens)


def test_two_idle_replicas_get_half_each() -> None:
    queue = make_queue(make_texts(*[100] * 16), tokens=10_000)

    assert len(queue.take_batch(num_idle_replicas=2)) == 8
    assert len(queue.take_batch(num_idle_replicas=1)) == 8


@pytest.mark.parametrize(
    ("num_queued", "num_concurrent", "leaves"),
    [
        (1, 0, True),  # a single text leaves at once
        (20, 20, True),  # the running batch is as small
        (20, 21, False),
        (MIN_SHARED_TOKENS, 10_000, True),
        (MIN_SHARED_TOKENS - 1, 10_000, False),
    ],
)
def test_a_few_tokens_wait_for_a_larger_batch_on_the_same_device(
    num_queued: int, num_concurrent: int, leaves: bool
) -> None:
    queue = make_queue(make_texts(num_queued), tokens=10_000)

    concurrent = [num_concurrent] if num_concurrent else []
    assert bool(queue.take_batch(concurrent_tokens=concurrent)) == leaves
    assert len(queue) == (0 if leaves else 1)


@no_deadline
@given(SIZES, TOKENS, st.lists(st.integers(1, 2000), max_size=4))
def test_a_batch_takes_no_more_than_its_share_of_what_is_queued_and_computed(
    sizes: list[int], tokens: int, concurrent: list[int]
) -> None:
    """But what it would leave may be too little for another batch."""
    queue = make_queue(make_texts(*sizes), tokens=tokens)
    share = max(-(-(queue.num_tokens + sum(concurrent)) // (1 + len(concurrent))), MIN_SHARED_TOKENS)
    batch = queue.take_batch(concurrent_tokens=concurrent)
    assert len(batch) <= 1 or sum(get_sizes(batch)) <= min(share + MIN_SHARED_TOKENS, tokens)


@no_deadline
@given(
    st.lists(st.integers(1, 100), min_size=1, max_size=60),
    st.lists(st.integers(1, 500), min_size=1, max_size=3),
    st.randoms(use_true_random=False),
)
def test_a_replica_that_ends_never_idles_beside_queued_items(
    sizes: list[int], computing: list[int], random: Random
) -> None:
    """Replicas end in any order, and nothing else arrives."""
    queue = make_queue(make_texts(*sizes), tokens=1000)
    if queue.num_tokens < MIN_SHARED_TOKENS:
        return
    running = list(computing)
    while len(queue):
        batch = queue.take_batch(concurrent_tokens=running)
        assert batch
        running.append(sum(get_sizes(batch)))
        running.pop(random.randrange(len(running)))


def test_a_replica_leaves_work_for_one_that_computes_a_small_batch() -> None:
    """It took all, and the other waited until it had ended: too few texts had come meanwhile."""
    queue = make_queue(make_texts(*[20] * 26), tokens=10_000)

    assert len(queue.take_batch(concurrent_tokens=[160])) == 17  # (520 + 160) / 2 tokens
    assert len(queue.take_batch(concurrent_tokens=[340])) == 9


def test_a_batch_takes_what_would_be_too_little_for_another() -> None:
    queue = make_queue(make_texts(150, 50), tokens=10_000)

    assert len(queue.take_batch(concurrent_tokens=[40])) == 2


def test_a_small_queue_is_not_shared() -> None:
    queue = make_queue(make_texts(*[MIN_SHARED_TOKENS // 4] * 4), tokens=10_000)

    assert len(queue.take_batch(num_idle_replicas=8)) == 4


@pytest.mark.parametrize(
    ("sizes", "batches"),
    [
        ([], []),
        ([40, 40, 40], [[40, 40], [40]]),
        ([100, 1], [[100], [1]]),
        ([500, 10, 20], [[500], [10, 20]]),  # an oversize item leaves alone and blocks no other
        ([60, 500, 30], [[60, 30], [500]]),  # passed over, and the oldest item then
        ([60, 50, 30, 50], [[60, 30], [50, 50]]),
        ([0, 0, 100, 0], [[0, 0, 100], [0]]),
    ],
)
def test_batches_of_a_budget_of_100(sizes: list[int], batches: list[list[int]]) -> None:
    taken = take_until_empty(make_queue(make_texts(*sizes), tokens=100))

    assert [get_sizes(batch) for batch in taken] == batches


def test_the_work_for_one_batch_is_bounded_however_many_items_are_queued() -> None:
    num_checked = 0

    class CountingText(QueuedText):
        @property
        def is_cancelled(self) -> bool:
            nonlocal num_checked
            num_checked += 1
            return False

        @is_cancelled.setter
        def is_cancelled(self, value: bool) -> None:
            pass

    queue = make_queue([CountingText(60) for _ in range(5000)], tokens=100)
    assert get_sizes(queue.take_batch()) == [60]
    assert num_checked == 1 + MAX_PASSED_OVER


class QueueMachine(RuleBasedStateMachine):
    """Add, take, cancel and empty in any order, against a plain list."""

    @initialize(tokens=TOKENS, items=ITEMS)
    def start(self, tokens: int, items: int) -> None:
        self.queue: BatchQueue[QueuedText] = BatchQueue(max_batch_tokens=tokens, max_batch_items=items)
        self.arrived: list[QueuedText] = []  # and not left, cancelled or not
        self.batches_left: dict[int, int] = {}  # by item: batches until it must have left

    def live(self) -> list[QueuedText]:
        return [text for text in self.arrived if not text.is_cancelled]

    @rule(sizes=st.lists(st.integers(0, 700), max_size=80))
    def add(self, sizes: list[int]) -> None:
        texts = make_texts(*sizes)
        for text in texts:
            self.batches_left[id(text)] = len(self.live()) + 1
            self.arrived.append(text)
        self.queue.add(texts)

    @rule(idle=IDLE)
    def take(self, idle: int) -> None:
        oldest = self.live()[:1]
        batch = self.queue.take_batch(num_idle_replicas=idle)

        assert batch[:1] == oldest, "the oldest leaves, and a batch is empty only when the queue is"
        assert len(batch) <= self.queue.max_batch_items
        assert len(batch) <= 1 or sum(get_sizes(batch)) <= self.queue.max_batch_tokens
        assert all(text in self.live() for text in batch)
        self.arrived = [text for text in self.arrived if text not in batch]
        for text in self.live():
            self.batches_left[id(text)] -= 1
            assert self.batches_left[id(text)] > 0, "an item waited for more batches than items before it"

    @precondition(lambda self: self.arrived)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.arrived)).is_cancelled = True

    @rule()
    def take_all(self) -> None:
        taken = self.queue.take_all()

        assert [text for text in taken if not text.is_cancelled] == self.live()
        assert (len(self.queue), self.queue.num_tokens) == (0, 0)
        self.arrived = []

    @invariant()
    def counts_match(self) -> None:
        num_items, num_tokens = len(self.queue), self.queue.num_tokens
        queued = peek(self.queue)
        assert num_items == len(queued)
        assert num_tokens == sum(get_sizes(queued))
        assert [text for text in queued if not text.is_cancelled] == self.live()
        assert all(text in self.arrived for text in queued)


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = no_deadline
