from __future__ import annotations

import itertools
from dataclasses import dataclass

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from infinity_emb.fairness import LANE_WEIGHTS, FairQueue, Flow
from infinity_emb.primitives import Lane

# The machine may be busy: only what the rules do counts, not how long an example takes.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@dataclass(eq=False)
class Text:
    flow: Flow
    num_tokens: int = 10


FLOWS = [Flow(client, lane) for client in "abc" for lane in ("interactive", "bulk")]
SIZES = st.integers(0, 700)


def leave(queue: FairQueue[Text]) -> Text:
    """The next one goes to the device."""
    start_tag, _, text = queue.pop()
    queue.advance(start_tag)
    return text


def texts_of(client: str, lane: Lane = "interactive", *, num: int, num_tokens: int = 10) -> list[Text]:
    return [Text(Flow(client, lane), num_tokens) for _ in range(num)]


@unhurried
@given(st.lists(SIZES, max_size=60), st.sampled_from(FLOWS))
def test_one_flow_leaves_in_the_order_in_which_it_came(sizes: list[int], flow: Flow) -> None:
    texts = [Text(flow, size) for size in sizes]
    queue: FairQueue[Text] = FairQueue()
    queue.add(texts)

    assert [leave(queue) for _ in texts] == texts


@unhurried
@given(
    st.lists(st.lists(st.integers(1, 700), min_size=20, max_size=60), min_size=2, max_size=5),
    st.sampled_from(["interactive", "bulk"]),
)
def test_clients_that_wait_together_get_the_same_number_of_tokens(sizes: list[list[int]], lane: Lane) -> None:
    queue: FairQueue[Text] = FairQueue()
    flows = [Flow(f"client {number}", lane) for number in range(len(sizes))]
    for flow, of_flow in zip(flows, sizes, strict=True):
        queue.add([Text(flow, size) for size in of_flow])
    waiting = {flow: len(of_flow) for flow, of_flow in zip(flows, sizes, strict=True)}
    served = dict.fromkeys(flows, 0)

    while all(waiting.values()):
        text = leave(queue)
        waiting[text.flow] -= 1
        served[text.flow] += text.num_tokens
        for first, second in itertools.combinations(flows, 2):
            assert abs(served[first] - served[second]) <= max(sizes[flows.index(first)]) + max(
                sizes[flows.index(second)]
            )


def test_a_query_leaves_before_the_thousands_of_passages_that_came_before_it() -> None:
    queue: FairQueue[Text] = FairQueue()
    queue.add(texts_of("a", "bulk", num=5_000, num_tokens=500))
    for _ in range(3):
        leave(queue)
    query = Text(Flow("b"))
    queue.add([query])

    # One passage may stand before it: the one whose tag is the present virtual time.
    assert query in [leave(queue) for _ in range(2)]


def test_a_clients_own_query_does_not_wait_for_its_own_passages() -> None:
    queue: FairQueue[Text] = FairQueue()
    queue.add(texts_of("a", "bulk", num=100, num_tokens=500))
    leave(queue)
    query = Text(Flow("a", "interactive"))
    queue.add([query])

    assert query in [leave(queue) for _ in range(2)]


def test_bulk_work_gets_its_share_beside_an_endless_stream_of_queries() -> None:
    queue: FairQueue[Text] = FairQueue()
    queue.add(texts_of("a", "bulk", num=50))
    num_bulk, num_queries = 0, 0
    while num_bulk < 50:
        queue.add(texts_of("b", num=2))
        text = leave(queue)
        num_bulk += text.flow.lane == "bulk"
        num_queries += text.flow.lane == "interactive"

    ratio = LANE_WEIGHTS["interactive"] / LANE_WEIGHTS["bulk"]
    assert num_queries <= ratio * (num_bulk + 1)


def test_who_has_asked_for_much_while_alone_does_not_pay_for_it_when_others_come() -> None:
    queue: FairQueue[Text] = FairQueue()
    queue.add(texts_of("a", num=1_000))
    for _ in range(1_000):
        leave(queue)
    queue.add([*texts_of("a", num=10), *texts_of("b", num=10)])

    first_half = [leave(queue).flow.client for _ in range(10)]
    assert sorted(first_half) == ["a"] * 5 + ["b"] * 5


def test_flows_that_have_nothing_to_pay_are_forgotten_even_where_somebody_always_waits() -> None:
    queue: FairQueue[Text] = FairQueue()
    queue.add(texts_of("always there", "bulk", num=1))
    for number in range(5_000):
        queue.add([*texts_of("always there", "bulk", num=1), *texts_of(f"client {number}", num=1)])
        leave(queue)
        leave(queue)

    assert len(queue._finish_tags) < 1_000


class FairQueueMachine(RuleBasedStateMachine):
    """Any order of coming, leaving and being passed over."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[Text] = FairQueue()
        self.waiting: list[Text] = []

    @rule(flow=st.sampled_from(FLOWS), sizes=st.lists(SIZES, max_size=20))
    def add(self, flow: Flow, sizes: list[int]) -> None:
        texts = [Text(flow, size) for size in sizes]
        self.queue.add(texts)
        self.waiting += texts

    @precondition(lambda self: self.waiting)
    @rule(num_passed_over=st.integers(0, 5))
    def take_one_behind_others(self, num_passed_over: int) -> None:
        popped = [self.queue.pop() for _ in range(min(num_passed_over + 1, len(self.waiting)))]
        *passed_over, (tag, _, text) = popped
        self.queue.advance(tag)
        self.queue.put_back(passed_over)
        self.waiting.remove(text)

    @precondition(lambda self: self.waiting)
    @rule()
    def take_the_first(self) -> None:
        tag, _, text = self.queue.pop()
        self.queue.advance(tag)
        of_flow = [each for each in self.waiting if each.flow == text.flow]
        assert text is of_flow[0], "a flow leaves in its own order"
        self.waiting.remove(text)

    @precondition(lambda self: self.waiting)
    @rule()
    def take_all(self) -> None:
        assert sorted(map(id, self.queue.pop_all())) == sorted(map(id, self.waiting))
        self.waiting.clear()

    @invariant()
    def nothing_is_lost(self) -> None:
        assert len(self.queue) == len(self.waiting)


TestFairQueueMachine = FairQueueMachine.TestCase


@unhurried
@given(st.lists(st.tuples(st.sampled_from(FLOWS), SIZES), min_size=1, max_size=80), st.data())
def test_no_item_waits_for_ever_however_many_others_come_behind_it(
    before: list[tuple[Flow, int]], data: st.DataObject
) -> None:
    """What comes later in other flows passes an item only by the tokens that the item's own flow is ahead."""
    queue: FairQueue[Text] = FairQueue()
    queue.add([Text(flow, size) for flow, size in before])
    watched = Text(data.draw(st.sampled_from(FLOWS)), 10)
    queue.add([watched])
    ahead = sum(size for flow, size in before if flow == watched.flow) / LANE_WEIGHTS[watched.flow.lane]
    stream = [Flow("x"), Flow("y")]  # never stops
    num_streamed = 0
    while True:
        queue.add([Text(flow, 100) for flow in stream])
        text = leave(queue)
        if text is watched:
            return
        num_streamed += text.flow in stream
        assert num_streamed <= len(stream) * (ahead * LANE_WEIGHTS["interactive"] / 100 + 2)
