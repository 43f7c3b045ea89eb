"""Short batches while a client with little to compute competes with one that has much."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infinity_emb.scheduling.batch_queue import (
    MIN_SHARED_TOKENS,
    NUM_SHORT_BATCHES,
    SHORT_BATCH_S,
    BatchQueue,
)
from infinity_emb.scheduling.fair_queue import Flow
from tests.scheduling.test_batch_queue import QueuedText

HOG, OTHER = Flow("hog", "bulk"), Flow("other")
BUDGET = 1024
SHORT = 256  # tokens that take SHORT_BATCH_S
# The machine may be busy, and no rule depends on time.
no_deadline = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def make_queue(*, short: int = SHORT) -> BatchQueue[QueuedText]:
    queue: BatchQueue[QueuedText] = BatchQueue(max_batch_tokens=BUDGET, max_batch_items=1000)
    queue.observe(short, SHORT_BATCH_S)
    return queue


def add(queue: BatchQueue[QueuedText], flow: Flow, *, num: int, num_tokens: int) -> None:
    queue.add([QueuedText(num_tokens, flow=flow) for _ in range(num)])


def count_tokens(batch: list[QueuedText], flow: Flow) -> int:
    return sum(text.num_tokens for text in batch if text.flow == flow)


def test_a_text_shares_its_batch_with_few_passages_and_the_next_batches_are_short() -> None:
    queue = make_queue()
    add(queue, HOG, num=1000, num_tokens=64)
    assert count_tokens(queue.take_batch(), HOG) == BUDGET

    add(queue, OTHER, num=1, num_tokens=500)
    batches = [queue.take_batch() for _ in range(NUM_SHORT_BATCHES)]

    assert [count_tokens(batch, OTHER) for batch in batches] == [500] + [0] * (NUM_SHORT_BATCHES - 1)
    assert [count_tokens(batch, HOG) for batch in batches] == [SHORT] * NUM_SHORT_BATCHES
    assert count_tokens(queue.take_batch(), HOG) == BUDGET, "the text's client seems to be gone"


def test_passages_that_come_after_a_text_begin_with_short_batches() -> None:
    """The client of the text is likely to send another one."""
    queue = make_queue()
    add(queue, OTHER, num=1, num_tokens=500)
    queue.take_batch()
    add(queue, HOG, num=100, num_tokens=64)

    assert count_tokens(queue.take_batch(), HOG) == SHORT


def test_a_text_joins_a_batch_that_begins_with_a_long_passage() -> None:
    queue = make_queue()
    add(queue, OTHER, num=1, num_tokens=800)
    queue.take_batch()
    add(queue, HOG, num=10, num_tokens=SHORT + 1)
    add(queue, OTHER, num=1, num_tokens=500)

    assert [text.flow for text in queue.take_batch()] == [HOG, OTHER]


def test_a_client_alone_gets_full_batches_to_the_end() -> None:
    queue = make_queue()
    for _ in range(3):
        add(queue, HOG, num=160, num_tokens=64)
        assert [count_tokens(queue.take_batch(), HOG) for _ in range(10)] == [BUDGET] * 10
        assert queue.take_batch() == []


def test_passages_of_a_client_whose_texts_were_few_before_get_full_batches() -> None:
    queue = make_queue()
    add(queue, OTHER, num=1, num_tokens=500)
    queue.take_batch()
    add(queue, OTHER, num=100, num_tokens=64)

    assert count_tokens(queue.take_batch(), OTHER) == BUDGET


def test_two_clients_with_much_work_get_full_batches() -> None:
    queue = make_queue()
    for client in "ab":
        add(queue, Flow(client), num=1000, num_tokens=64)

    batches = [queue.take_batch() for _ in range(20)]
    assert all(sum(text.num_tokens for text in batch) == BUDGET for batch in batches)


def test_many_clients_with_a_text_each_get_full_batches() -> None:
    queue = make_queue()
    for number in range(1000):
        add(queue, Flow(f"client {number}"), num=1, num_tokens=64)

    batches = [queue.take_batch() for _ in range(20)]
    assert all(sum(text.num_tokens for text in batch) == BUDGET for batch in batches)


def test_batches_stay_full_on_a_device_for_which_they_are_short() -> None:
    queue = make_queue(short=BUDGET)
    add(queue, HOG, num=1000, num_tokens=64)
    add(queue, OTHER, num=1, num_tokens=64)

    assert sum(text.num_tokens for text in queue.take_batch()) == BUDGET


def test_batches_of_an_unknown_speed_stay_full() -> None:
    queue: BatchQueue[QueuedText] = BatchQueue(max_batch_tokens=BUDGET, max_batch_items=1000)
    queue.observe(MIN_SHARED_TOKENS - 1, 1000.0)  # too small to tell
    add(queue, HOG, num=1000, num_tokens=64)
    add(queue, OTHER, num=1, num_tokens=64)

    assert sum(text.num_tokens for text in queue.take_batch()) == BUDGET


def test_a_short_batch_has_enough_tokens_however_slow_the_device_is() -> None:
    assert make_queue(short=MIN_SHARED_TOKENS).short_batch_tokens == MIN_SHARED_TOKENS
    slow: BatchQueue[QueuedText] = BatchQueue(max_batch_tokens=BUDGET, max_batch_items=1000)
    slow.observe(BUDGET, 1000.0)
    assert slow.short_batch_tokens == MIN_SHARED_TOKENS


@no_deadline
@given(
    st.lists(st.integers(1, BUDGET), min_size=1, max_size=40),
    st.lists(st.integers(1, BUDGET), min_size=20, max_size=60),
)
def test_a_text_waits_for_no_long_batch_and_the_others_advance(texts: list[int], passages: list[int]) -> None:
    """A client sends each text after the response to the one before."""
    queue = make_queue()
    add(queue, OTHER, num=1, num_tokens=1)
    queue.take_batch()
    queue.add([QueuedText(size, flow=HOG) for size in [*passages, BUDGET, BUDGET]])
    for size in texts:
        add(queue, OTHER, num=1, num_tokens=size)
        num_before = queue.num_flow_tokens(HOG)
        while queue.num_flow_tokens(OTHER):
            batch = queue.take_batch()
            sizes = [text.num_tokens for text in batch if text.flow == HOG]
            if queue.num_flow_tokens(HOG) > BUDGET:
                assert sum(sizes) <= SHORT or len(sizes) == 1
        queue.take_batch()
        assert num_before == 0 or queue.num_flow_tokens(HOG) < num_before
