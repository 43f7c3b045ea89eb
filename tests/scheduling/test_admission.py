from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from infinity_emb.errors import BadInput, Overloaded
from infinity_emb.scheduling.admission import MAX_RETRY_AFTER_S, MIN_RESERVE, Admission, Backlog
from infinity_emb.scheduling.fair_queue import LANE_WEIGHTS, Flow
from infinity_emb.scheduling.throughput import Progress
from infinity_emb.types import Lane

BULK, INTERACTIVE = Flow("client", "bulk"), Flow("client", "interactive")
FLOWS = st.sampled_from([Flow(client, lane) for client in "abc" for lane in LANE_WEIGHTS])


@dataclass
class Devices:
    """Report to an admission what a test says was computed and is queued."""

    progress: Progress = field(default_factory=lambda: Progress(0, 0, 0.0, 1))
    backlog: Backlog = field(default_factory=lambda: Backlog(0, 0))

    def have_computed(
        self, *, num_items: int, num_tokens: int, compute_s: float, num_parallel: int = 1
    ) -> None:
        self.progress = Progress(num_items, num_tokens, compute_s, num_parallel)

    def admission(
        self, *, max_items: int = 1000, max_tokens: int = 100_000, max_wait_s: float = math.inf
    ) -> Admission:
        return Admission(
            name="model",
            max_items=max_items,
            max_tokens=max_tokens,
            max_wait_s=max_wait_s,
            progress=lambda: self.progress,
            backlog=lambda flow: self.backlog,
        )


def test_a_request_is_admitted_or_refused_as_a_whole() -> None:
    admission = Devices().admission(max_items=10)
    admission.admit(8, BULK)
    with pytest.raises(Overloaded, match=r"queue full \(8 of 10 inputs\)"):
        admission.admit(3, BULK)
    assert admission.num_accepted_items == 8
    admission.admit(2, BULK)
    assert admission.is_full(BULK)
    admission.release(8, BULK)
    assert admission.num_items == {"interactive": 0, "bulk": 2}
    assert admission.num_refused == 1


def test_a_full_queue_refuses_before_the_request_is_read_and_counts_the_refusal() -> None:
    admission = Devices().admission(max_items=10)
    admission.admit(10, BULK)
    with pytest.raises(Overloaded):
        admission.admit(1, BULK)
    for num_refused in (2, 3):
        with pytest.raises(Overloaded, match=r"queue full \(10 of 10 inputs\)"):
            admission.check_capacity(BULK)
        assert admission.num_refused == num_refused
    admission.release(1, BULK)
    admission.check_capacity(BULK)
    assert admission.num_refused == 3


def test_a_queue_with_capacity_for_one_input_is_not_full() -> None:
    admission = Devices().admission(max_items=10)
    admission.admit(9, BULK)
    with pytest.raises(Overloaded):
        admission.admit(2, BULK)
    admission.check_capacity(BULK)
    admission.admit(1, BULK)


def test_a_request_larger_than_the_queue_is_bad_input_and_not_overload() -> None:
    with pytest.raises(BadInput, match="11 inputs, the queue holds at most 10; split the request"):
        Devices().admission(max_items=10).admit(11, BULK)


def test_the_limit_applies_to_the_whole_of_a_request_that_grows() -> None:
    admission = Devices().admission(max_items=10)
    admission.admit(5, BULK)
    with pytest.raises(BadInput, match="11 inputs"):
        admission.admit(6, BULK, num_total=11)
    admission.admit(5, BULK, num_total=10)
    assert admission.num_accepted_items == 10


def test_queued_tokens_are_limited_too() -> None:
    devices = Devices(backlog=Backlog(500, 500, num_flow_tokens=500))
    with pytest.raises(Overloaded, match=r"queue full \(500 of 500 tokens\)"):
        devices.admission(max_tokens=500).admit(1, INTERACTIVE)


def test_no_request_is_refused_for_its_wait_before_the_throughput_is_known() -> None:
    devices = Devices(backlog=Backlog(99_999, 0))
    devices.admission(max_wait_s=0.1).admit(1000, BULK)


def test_a_request_that_would_wait_too_long_is_refused_with_a_retry_after() -> None:
    devices = Devices()
    admission = devices.admission(max_wait_s=9.0)
    devices.have_computed(num_items=100, num_tokens=10_000, compute_s=10.0)
    devices.backlog = Backlog(20_000, 0)  # twenty seconds of work

    with pytest.raises(Overloaded, match="wait of 20 s exceeds the limit of 9 s") as caught:
        admission.admit(1, BULK)
    assert caught.value.retry_after_s == 10


def test_inputs_that_are_still_being_tokenized_count_as_queued() -> None:
    devices = Devices()
    admission = devices.admission(max_wait_s=9.0)
    devices.have_computed(num_items=100, num_tokens=10_000, compute_s=10.0)
    admission.admit(95, BULK)
    with pytest.raises(Overloaded, match="wait of 10 s"):
        admission.admit(1, BULK)


def test_an_interactive_request_does_not_wait_for_bulk_work() -> None:
    devices = Devices()
    admission = devices.admission(max_wait_s=1.0)
    devices.have_computed(num_items=100, num_tokens=10_000, compute_s=10.0)
    admission.admit(500, INTERACTIVE)
    admission.release(500, INTERACTIVE)
    devices.backlog = Backlog(90_000, 500)

    with pytest.raises(Overloaded):
        admission.admit(1, BULK)
    admission.admit(1, INTERACTIVE)


def test_the_throughput_of_parallel_devices_adds_up() -> None:
    devices = Devices(backlog=Backlog(10_000, 0))
    devices.have_computed(num_items=100, num_tokens=10_000, compute_s=10.0, num_parallel=4)
    assert devices.admission().estimated_wait_s("bulk") == pytest.approx(2.5)


def test_the_throughput_follows_the_latest_measurements() -> None:
    devices = Devices(backlog=Backlog(10_000, 0))
    admission = devices.admission()
    devices.have_computed(num_items=10, num_tokens=10_000, compute_s=1.0)
    assert admission.estimated_wait_s("bulk") == pytest.approx(1.0)
    for second in range(2, 40):
        devices.have_computed(
            num_items=10 * second, num_tokens=10_000 + 1_000 * (second - 1), compute_s=second
        )
        admission.estimated_wait_s("bulk")
    assert admission.estimated_wait_s("bulk") == pytest.approx(10.0, rel=0.01)


@given(
    st.integers(0, 10**6),
    st.integers(0, 10**8),
    st.floats(0, 10**5),
    st.integers(1000, 10**7),
    st.floats(0, 100),
)
def test_retry_after_is_always_within_its_bounds(
    num_items: int, num_tokens: int, compute_s: float, num_waiting: int, max_wait_s: float
) -> None:
    devices = Devices(backlog=Backlog(num_waiting, num_waiting, num_flow_tokens=num_waiting))
    devices.have_computed(num_items=num_items, num_tokens=num_tokens, compute_s=compute_s)
    with pytest.raises(Overloaded) as caught:
        devices.admission(max_tokens=1000, max_wait_s=max_wait_s).admit(1, INTERACTIVE)
    assert 1 <= caught.value.retry_after_s <= MAX_RETRY_AFTER_S


def test_a_full_lane_refuses_nobody_of_the_other_lane() -> None:
    """An interactive request got 429 where thousands of passages filled the queue."""
    admission = Devices().admission(max_items=1000)
    admission.admit(1000, BULK)
    with pytest.raises(Overloaded):
        admission.admit(1, BULK)
    admission.admit(1000, INTERACTIVE)


def fill(admission: Admission, flow: Flow, num_items: int) -> None:
    while True:
        admission.admit(num_items, flow)


def test_a_client_that_holds_less_than_its_share_is_let_in_while_another_fills_the_queue() -> None:
    admission = Devices().admission(max_items=1000)
    hog, others = Flow("hog"), [Flow(f"client {number}") for number in range(10)]
    for size in (64, 8, 1):
        with pytest.raises(Overloaded):
            fill(admission, hog, size)
    assert admission.num_items["interactive"] == 1000
    for other in others:
        admission.check_capacity(other)
        admission.admit(1, other)
    with pytest.raises(Overloaded):
        admission.admit(1, hog)


def test_a_queue_of_a_few_inputs_is_shared_too() -> None:
    admission = Devices().admission(max_items=2)
    admission.admit(2, Flow("hog"))
    with pytest.raises(Overloaded):
        admission.admit(1, Flow("hog"))
    for number in range(20):
        admission.admit(1, Flow(f"client {number}"))


def test_tokens_of_one_client_refuse_no_other() -> None:
    devices = Devices()
    admission = devices.admission(max_tokens=500)
    admission.admit(3, Flow("hog"))
    admission.admit(1, Flow("other"))
    devices.backlog = Backlog(900, 900, num_flow_tokens=800)
    with pytest.raises(Overloaded, match="900 of 500 tokens"):
        admission.admit(1, Flow("hog"))
    devices.backlog = Backlog(900, 900, num_flow_tokens=100)
    admission.admit(1, Flow("other"))


def test_the_expected_wait_is_that_of_the_clients_share() -> None:
    devices = Devices()
    admission = devices.admission(max_wait_s=9.0)
    devices.have_computed(num_items=100, num_tokens=10_000, compute_s=10.0)
    admission.admit(90, Flow("hog", "bulk"))
    admission.admit(4, Flow("other", "bulk"))  # waits for four more of the hog
    with pytest.raises(Overloaded):
        admission.admit(4, Flow("hog", "bulk"))
    for number in range(7):
        admission.admit(1, Flow(f"client {number}", "bulk"))
    with pytest.raises(Overloaded, match="wait of 10 s"):
        admission.admit(12, Flow("another", "bulk"))


def test_bulk_work_waits_longer_beside_interactive_requests_that_keep_coming() -> None:
    """It was admitted by what was queued at that moment, and answered after twenty times the limit."""
    devices = Devices()
    admission = devices.admission(max_wait_s=9.0)
    devices.have_computed(num_items=100, num_tokens=10_000, compute_s=10.0)
    devices.backlog = Backlog(2_000, 0)
    admission.admit(1, BULK)
    for second in range(20):
        taken = {"num_taken_tokens": 1_000 * second, "num_taken_bulk_tokens": 250 * second}
        devices.have_computed(
            num_items=100 + 10 * second, num_tokens=10_000 + 1_000 * second, compute_s=10.0 + second
        )
        devices.backlog = Backlog(2_000, 0, **taken)
        admission.estimated_wait_s("bulk")
    assert admission.estimated_wait_s("bulk") == pytest.approx(8.0, rel=0.02)
    devices.backlog = Backlog(2_500, 0, **taken)
    with pytest.raises(Overloaded, match="wait of 10 s"):
        admission.admit(1, BULK)


def test_a_client_that_is_refused_costs_others_no_check() -> None:
    admission = Devices().admission(max_items=10)
    admission.admit(10, BULK)
    with pytest.raises(Overloaded):
        admission.admit(1, BULK)
    admission.check_capacity(INTERACTIVE)
    admission.check_capacity(Flow("other", "bulk"))
    with pytest.raises(Overloaded):
        admission.check_capacity(BULK)


class AdmissionMachine(RuleBasedStateMachine):
    """Counts equal the admitted inputs and have limits, and there is always room for another client."""

    def __init__(self) -> None:
        super().__init__()
        self.admission = Devices().admission(max_items=50)
        self.admitted: list[tuple[int, Flow]] = []

    def count(self, lane: Lane, client: str | None = None) -> int:
        return sum(
            number for number, flow in self.admitted if flow.lane == lane and client in (None, flow.client)
        )

    @rule(num_items=st.integers(0, 60), flow=FLOWS)
    def admit(self, num_items: int, flow: Flow) -> None:
        num_after = num_items + self.count(flow.lane)
        num_held = num_items + self.count(flow.lane, flow.client)
        try:
            self.admission.admit(num_items, flow)
        except (Overloaded, BadInput):
            assert num_after > 50, "refused where there is room"
        else:
            assert num_held <= 50
            self.admitted.append((num_items, flow))

    @rule(flow=FLOWS)
    def check_capacity(self, flow: Flow) -> None:
        """A full queue may only pass where the flow was not refused since there was capacity."""
        num_refused = self.admission.num_refused
        try:
            self.admission.check_capacity(flow)
        except Overloaded:
            assert self.admission.is_full(flow)
            assert self.admission.num_refused == num_refused + 1
        else:
            assert self.admission.num_refused == num_refused

    @precondition(lambda self: self.admitted)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.admitted))
        self.admitted.remove(request)
        self.admission.release(*request)

    @invariant()
    def count_matches(self) -> None:
        assert self.admission.num_accepted_items == sum(number for number, _ in self.admitted)
        for lane in LANE_WEIGHTS:
            assert self.count(lane) == self.admission.num_items[lane] < 50 + MIN_RESERVE

    @invariant()
    def somebody_new_is_let_in(self) -> None:
        for lane in LANE_WEIGHTS:
            assert not self.admission.is_full(Flow("new", lane))


TestAdmissionMachine = AdmissionMachine.TestCase
