from __future__ import annotations

import itertools
from dataclasses import dataclass

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from infinity_emb.scheduling.fair_queue import LANE_WEIGHTS, FairQueue, Flow
from infinity_emb.types import Lane

# The machine may be busy, and no rule depends on time.
no_deadline = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@dataclass(eq=False)
class QueuedText:
    flow: Flow
    num_tokens: int = 10


FLOWS = [Flow(client, lane) for client in "abc" for lane in ("interactive", "bulk")]
SIZES = st.integers(0, 700)


def take(queue: FairQueue[QueuedText]) -> QueuedText:
    """Take the next item."""
    start_tag, _, text = queue.pop()
    queue.advance(start_tag)
    return text


def make_texts(
    client: str, lane: Lane = "interactive", *, num: int, num_tokens: int = 10
) -> list[QueuedText]:
    return [QueuedText(Flow(client, lane), num_tokens) for _ in range(num)]


@no_deadline
@given(st.lists(SIZES, max_size=60), st.sampled_from(FLOWS))
def test_items_of_one_flow_leave_in_order(sizes: list[int], flow: Flow) -> None:
    texts = [QueuedText(flow, size) for size in sizes]
    queue: FairQueue[QueuedText] = FairQueue()
    queue.add(texts)

    assert [take(queue) for _ in texts] == texts


@no_deadline
@given(
    st.lists(st.lists(st.integers(1, 700), min_size=20, max_size=60), min_size=2, max_size=5),
    st.sampled_from(["interactive", "bulk"]),
)
def test_clients_with_queued_items_get_the_same_number_of_tokens(sizes: list[list[int]], lane: Lane) -> None:
    queue: FairQueue[QueuedText] = FairQueue()
    flows = [Flow(f"client {number}", lane) for number in range(len(sizes))]
    for flow, flow_sizes in zip(flows, sizes, strict=True):
        queue.add([QueuedText(flow, size) for size in flow_sizes])
    queued = {flow: len(flow_sizes) for flow, flow_sizes in zip(flows, sizes, strict=True)}
    served = dict.fromkeys(flows, 0)

    while all(queued.values()):
        text = take(queue)
        queued[text.flow] -= 1
        served[text.flow] += text.num_tokens
        for first, second in itertools.combinations(flows, 2):
            assert abs(served[first] - served[second]) <= max(sizes[flows.index(first)]) + max(
                sizes[flows.index(second)]
            )


def test_a_query_leaves_before_thousands_of_passages_that_were_queued_earlier() -> None:
    queue: FairQueue[QueuedText] = FairQueue()
    queue.add(make_texts("a", "bulk", num=5_000, num_tokens=500))
    for _ in range(3):
        take(queue)
    query = QueuedText(Flow("b"))
    queue.add([query])

    # One passage may leave first: its tag is the present virtual time.
    assert query in [take(queue) for _ in range(2)]


def test_a_query_does_not_wait_for_passages_of_the_same_client() -> None:
    queue: FairQueue[QueuedText] = FairQueue()
    queue.add(make_texts("a", "bulk", num=100, num_tokens=500))
    take(queue)
    query = QueuedText(Flow("a", "interactive"))
    queue.add([query])

    assert query in [take(queue) for _ in range(2)]


def test_bulk_work_gets_its_share_during_an_endless_stream_of_queries() -> None:
    queue: FairQueue[QueuedText] = FairQueue()
    queue.add(make_texts("a", "bulk", num=50))
    num_bulk, num_queries = 0, 0
    while num_bulk < 50:
        queue.add(make_texts("b", num=2))
        text = take(queue)
        num_bulk += text.flow.lane == "bulk"
        num_queries += text.flow.lane == "interactive"

    ratio = LANE_WEIGHTS["interactive"] / LANE_WEIGHTS["bulk"]
    assert num_queries <= ratio * (num_bulk + 1)


def test_a_client_is_not_penalised_for_what_it_used_while_alone() -> None:
    queue: FairQueue[QueuedText] = FairQueue()
    queue.add(make_texts("a", num=1_000))
    for _ in range(1_000):
        take(queue)
    queue.add([*make_texts("a", num=10), *make_texts("b", num=10)])

    first_half = [take(queue).flow.client for _ in range(10)]
    assert sorted(first_half) == ["a"] * 5 + ["b"] * 5


def test_idle_flows_are_pruned_even_if_the_queue_is_never_empty() -> None:
    queue: FairQueue[QueuedText] = FairQueue()
    queue.add(make_texts("permanent", "bulk", num=1))
    for number in range(5_000):
        queue.add([*make_texts("permanent", "bulk", num=1), *make_texts(f"client {number}", num=1)])
        take(queue)
        take(queue)

    assert queue.num_flows < 1_000


class FairQueueMachine(RuleBasedStateMachine):
    """Add, take and pass over in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[QueuedText] = FairQueue()
        self.queued: list[QueuedText] = []

    @rule(flow=st.sampled_from(FLOWS), sizes=st.lists(SIZES, max_size=20))
    def add(self, flow: Flow, sizes: list[int]) -> None:
        texts = [QueuedText(flow, size) for size in sizes]
        self.queue.add(texts)
        self.queued += texts

    @precondition(lambda self: self.queued)
    @rule(num_passed_over=st.integers(0, 5))
    def take_one_and_pass_over_others(self, num_passed_over: int) -> None:
        popped = [self.queue.pop() for _ in range(min(num_passed_over + 1, len(self.queued)))]
        *passed_over, (tag, _, text) = popped
        self.queue.advance(tag)
        self.queue.put_back(passed_over)
        self.queued.remove(text)

    @precondition(lambda self: self.queued)
    @rule()
    def take_first(self) -> None:
        tag, _, text = self.queue.pop()
        self.queue.advance(tag)
        flow_items = [other for other in self.queued if other.flow == text.flow]
        assert text is flow_items[0], "items of a flow leave in order"
        self.queued.remove(text)

    @precondition(lambda self: self.queued)
    @rule()
    def take_all(self) -> None:
        assert sorted(map(id, self.queue.take_all())) == sorted(map(id, self.queued))
        self.queued.clear()

    @invariant()
    def size_matches(self) -> None:
        assert len(self.queue) == len(self.queued)


TestFairQueueMachine = FairQueueMachine.TestCase


@no_deadline
@given(st.lists(st.tuples(st.sampled_from(FLOWS), SIZES), min_size=1, max_size=80), st.data())
def test_no_item_starves_however_many_others_are_queued_later(
    before: list[tuple[Flow, int]], data: st.DataObject
) -> None:
    """Later items of other flows overtake an item only by the tokens that its own flow is ahead."""
    queue: FairQueue[QueuedText] = FairQueue()
    queue.add([QueuedText(flow, size) for flow, size in before])
    watched = QueuedText(data.draw(st.sampled_from(FLOWS)), 10)
    queue.add([watched])
    ahead = sum(size for flow, size in before if flow == watched.flow) / LANE_WEIGHTS[watched.flow.lane]
    stream = [Flow("x"), Flow("y")]  # endless
    num_streamed = 0
    while True:
        queue.add([QueuedText(flow, 100) for flow in stream])
        text = take(queue)
        if text is watched:
            return
        num_streamed += text.flow in stream
        assert num_streamed <= len(stream) * (ahead * LANE_WEIGHTS["interactive"] / 100 + 2)
