from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from infinity_emb.batching import (
    MAX_PASSED_OVER,
    MIN_SHARED_TOKENS,
    WaitingQueue,
    groups_of_similar_length,
    split_batch,
)
from infinity_emb.fairness import Flow

NOBODY = Flow()
# The machine may be busy: only what the rules do counts, not how long an example takes.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@dataclass(eq=False)
class Text:
    num_tokens: int
    is_cancelled: bool = False
    flow: Flow = NOBODY


def texts_of(*sizes: int) -> list[Text]:
    return [Text(size) for size in sizes]


def queue_of(texts: list[Text], *, tokens: int = 100, items: int = 1000) -> WaitingQueue[Text]:
    queue: WaitingQueue[Text] = WaitingQueue(max_batch_tokens=tokens, max_batch_items=items)
    queue.add(texts)
    return queue


def still_waiting(queue: WaitingQueue[Text]) -> list[Text]:
    """What is in the queue: taken out and put back as it was."""
    texts = queue.take_all()
    queue.add(texts)
    return texts


def sizes_of(batch: list[Text]) -> list[int]:
    return [text.num_tokens for text in batch]


def take_until_empty(queue: WaitingQueue[Text], *, num_idle: int = 1) -> list[list[Text]]:
    batches = []
    while batch := queue.take_batch(num_idle_replicas=num_idle):
        batches.append(batch)
    return batches


SIZES = st.lists(st.integers(0, 700), max_size=120)
TOKENS = st.integers(1, 600)
ITEMS = st.integers(1, 20)
IDLE = st.integers(1, 5)


@unhurried
@given(SIZES, TOKENS, ITEMS, IDLE)
def test_every_item_leaves_exactly_once(sizes: list[int], tokens: int, items: int, idle: int) -> None:
    texts = texts_of(*sizes)
    batches = take_until_empty(queue_of(texts, tokens=tokens, items=items), num_idle=idle)

    left = [id(text) for batch in batches for text in batch]
    assert sorted(left) == sorted(map(id, texts))


@unhurried
@given(SIZES, TOKENS, ITEMS, IDLE)
def test_no_batch_is_over_a_limit_but_a_single_oversize_item(
    sizes: list[int], tokens: int, items: int, idle: int
) -> None:
    for batch in take_until_empty(queue_of(texts_of(*sizes), tokens=tokens, items=items), num_idle=idle):
        assert 1 <= len(batch) <= items
        assert len(batch) == 1 or sum(sizes_of(batch)) <= tokens


@unhurried
@given(SIZES, TOKENS, ITEMS, IDLE)
def test_items_leave_in_order_of_arrival_and_the_others_keep_their_place(
    sizes: list[int], tokens: int, items: int, idle: int
) -> None:
    texts = texts_of(*sizes)
    place = {id(text): position for position, text in enumerate(texts)}
    queue = queue_of(texts, tokens=tokens, items=items)
    while batch := queue.take_batch(num_idle_replicas=idle):
        for group in (batch, still_waiting(queue)):
            assert all(place[id(first)] < place[id(second)] for first, second in pairwise(group))


@unhurried
@given(SIZES, TOKENS, ITEMS, IDLE)
def test_an_item_waits_for_at_most_as_many_batches_as_there_are_items_before_it(
    sizes: list[int], tokens: int, items: int, idle: int
) -> None:
    texts = texts_of(*sizes)
    batches = take_until_empty(queue_of(texts, tokens=tokens, items=items), num_idle=idle)

    batch_of = {id(text): number for number, batch in enumerate(batches) for text in batch}
    for position, text in enumerate(texts):
        assert batch_of[id(text)] <= position


@unhurried
@given(st.lists(st.tuples(st.integers(0, 700), st.booleans()), max_size=120), TOKENS, ITEMS, IDLE)
def test_cancelled_items_never_leave_and_hold_nobody_up(
    sizes: list[tuple[int, bool]], tokens: int, items: int, idle: int
) -> None:
    texts = [Text(size, is_cancelled) for size, is_cancelled in sizes]
    queue = queue_of(texts, tokens=tokens, items=items)
    batches = take_until_empty(queue, num_idle=idle)

    left = [text for batch in batches for text in batch]
    assert {id(text) for text in left} == {id(text) for text in texts if not text.is_cancelled}
    assert (len(queue), queue.num_tokens) == (0, 0)


@unhurried
@given(SIZES, TOKENS, ITEMS, IDLE)
def test_the_token_counter_is_the_sum_of_what_waits(
    sizes: list[int], tokens: int, items: int, idle: int
) -> None:
    queue = queue_of(texts_of(*sizes), tokens=tokens, items=items)
    assert queue.num_tokens == sum(sizes)
    while queue.take_batch(num_idle_replicas=idle):
        counted = queue.num_tokens
        assert counted == sum(sizes_of(still_waiting(queue)))
    assert queue.num_tokens == 0


@unhurried
@given(SIZES, TOKENS, st.integers(1, 5))
def test_replicas_that_are_all_idle_share_what_waits(sizes: list[int], tokens: int, replicas: int) -> None:
    """Each takes at most its share, where that is not so little that sharing would not pay."""
    queue = queue_of(texts_of(*sizes), tokens=tokens)
    for num_idle in range(replicas, 0, -1):
        share = max(-(-queue.num_tokens // num_idle), MIN_SHARED_TOKENS)
        batch = queue.take_batch(num_idle_replicas=num_idle)
        assert len(batch) <= 1 or sum(sizes_of(batch)) <= min(share, tokens)


def test_two_idle_replicas_get_half_each() -> None:
    queue = queue_of(texts_of(*[100] * 16), tokens=10_000)

    assert len(queue.take_batch(num_idle_replicas=2)) == 8
    assert len(queue.take_batch(num_idle_replicas=1)) == 8


@pytest.mark.parametrize(
    ("waiting", "beside", "leaves"),
    [
        (1, 0, True),  # a lone text leaves at once
        (20, 20, True),  # beside a batch as small as itself
        (20, 21, False),
        (MIN_SHARED_TOKENS, 10_000, True),
        (MIN_SHARED_TOKENS - 1, 10_000, False),
    ],
)
def test_a_few_tokens_wait_for_a_larger_batch_on_the_same_device(
    waiting: int, beside: int, leaves: bool
) -> None:
    queue = queue_of(texts_of(waiting), tokens=10_000)

    assert bool(queue.take_batch(tokens_beside=beside)) == leaves
    assert len(queue) == (0 if leaves else 1)


def test_little_work_is_not_shared() -> None:
    queue = queue_of(texts_of(*[MIN_SHARED_TOKENS // 4] * 4), tokens=10_000)

    assert len(queue.take_batch(num_idle_replicas=8)) == 4


@pytest.mark.parametrize(
    ("sizes", "batches"),
    [
        ([], []),
        ([40, 40, 40], [[40, 40], [40]]),
        ([100, 1], [[100], [1]]),
        ([500, 10, 20], [[500], [10, 20]]),  # an oversize item goes alone and blocks nobody
        ([60, 500, 30], [[60, 30], [500]]),  # what does not fit is passed over, and is the oldest then
        ([60, 50, 30, 50], [[60, 30], [50, 50]]),
        ([0, 0, 100, 0], [[0, 0, 100], [0]]),
    ],
)
def test_batches_of_a_budget_of_100(sizes: list[int], batches: list[list[int]]) -> None:
    taken = take_until_empty(queue_of(texts_of(*sizes), tokens=100))

    assert [sizes_of(batch) for batch in taken] == batches


def test_the_work_for_one_batch_is_bounded_however_many_items_wait() -> None:
    num_looked_at = 0

    class Watched(Text):
        @property
        def is_cancelled(self) -> bool:
            nonlocal num_looked_at
            num_looked_at += 1
            return False

        @is_cancelled.setter
        def is_cancelled(self, value: bool) -> None:
            pass

    queue = queue_of([Watched(60) for _ in range(5000)], tokens=100)
    assert sizes_of(queue.take_batch()) == [60]
    assert num_looked_at == 1 + MAX_PASSED_OVER


class QueueMachine(RuleBasedStateMachine):
    """Any order of adding, taking, cancelling and emptying, against a plain list."""

    @initialize(tokens=TOKENS, items=ITEMS)
    def start(self, tokens: int, items: int) -> None:
        self.queue: WaitingQueue[Text] = WaitingQueue(max_batch_tokens=tokens, max_batch_items=items)
        self.arrived: list[Text] = []  # what has not left, cancelled or not
        self.batches_left: dict[int, int] = {}  # of an item: batches within which it must have left

    def live(self) -> list[Text]:
        return [text for text in self.arrived if not text.is_cancelled]

    @rule(sizes=st.lists(st.integers(0, 700), max_size=80))
    def add(self, sizes: list[int]) -> None:
        texts = texts_of(*sizes)
        for text in texts:
            self.batches_left[id(text)] = len(self.live()) + 1
            self.arrived.append(text)
        self.queue.add(texts)

    @rule(idle=IDLE)
    def take(self, idle: int) -> None:
        oldest = self.live()[:1]
        batch = self.queue.take_batch(num_idle_replicas=idle)

        assert batch[:1] == oldest, "the oldest leaves, and a batch is empty only when nobody waits"
        assert len(batch) <= self.queue.max_batch_items
        assert len(batch) <= 1 or sum(sizes_of(batch)) <= self.queue.max_batch_tokens
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
    def counts_are_those_of_what_waits(self) -> None:
        num_items, num_tokens = len(self.queue), self.queue.num_tokens
        waiting = still_waiting(self.queue)
        assert num_items == len(waiting)
        assert num_tokens == sum(sizes_of(waiting))
        assert [text for text in waiting if not text.is_cancelled] == self.live()
        assert all(text in self.arrived for text in waiting)


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = unhurried


@unhurried
@given(st.lists(st.integers(), min_size=2))
def test_the_halves_of_a_failed_batch_are_the_batch_and_neither_is_empty(batch: list[int]) -> None:
    first, second = split_batch(batch)

    assert first + second == batch
    assert 0 <= len(second) - len(first) <= 1
    assert first


@unhurried
@given(st.lists(st.integers(0, 2000)).map(sorted), st.floats(0, 0.9))
def test_groups_cover_the_whole_list_in_order(lengths: list[int], max_padding: float) -> None:
    groups = groups_of_similar_length(lengths, max_padding=max_padding)

    assert [position for start, end in groups for position in range(start, end)] == list(range(len(lengths)))
    assert all(start < end for start, end in groups)


@unhurried
@given(st.lists(st.integers(0, 2000)).map(sorted), st.floats(0, 0.9))
def test_groups_stay_within_their_padding_and_are_not_cut_without_need(
    lengths: list[int], max_padding: float
) -> None:
    groups = groups_of_similar_length(lengths, max_padding=max_padding)

    for start, end in groups:
        assert padding(lengths[start:end]) <= max_padding * padded(lengths[start:end])
    for (start, end), _ in pairwise(groups):
        longer = lengths[start : end + 1]
        assert padding(longer) > max_padding * padded(longer)


def padded(group: list[int]) -> int:
    return max(group) * len(group)


def padding(group: list[int]) -> int:
    return padded(group) - sum(group)


def test_without_padding_a_group_is_a_run_of_equal_lengths() -> None:
    assert groups_of_similar_length([2, 2, 2, 3, 5, 5], max_padding=0) == [(0, 3), (3, 4), (4, 6)]
    assert groups_of_similar_length([], max_padding=0) == []
