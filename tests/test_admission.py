from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from infinity_emb.admission import MAX_RETRY_AFTER_S, Admission, Backlog, Progress
from infinity_emb.errors import BadInput, Overloaded
from infinity_emb.primitives import Lane

LANES = st.sampled_from(["interactive", "bulk"])


@dataclass
class Devices:
    """What the devices are said to have done, and what is said to wait for them."""

    progress: Progress = field(default_factory=lambda: Progress(0, 0, 0.0, 1))
    backlog: Backlog = field(default_factory=lambda: Backlog(0, 0))

    def have_computed(self, *, num_items: int, num_tokens: int, busy_s: float, num_parallel: int = 1) -> None:
        self.progress = Progress(num_items, num_tokens, busy_s, num_parallel)

    def admission(
        self, *, max_items: int = 1000, max_tokens: int = 100_000, max_wait_s: float = math.inf
    ) -> Admission:
        return Admission(
            name="model",
            max_items=max_items,
            max_tokens=max_tokens,
            max_wait_s=max_wait_s,
            progress=lambda: self.progress,
            backlog=lambda: self.backlog,
        )


def test_a_request_is_taken_whole_or_refused_whole() -> None:
    admission = Devices().admission(max_items=10)
    admission.take(8, "bulk")
    with pytest.raises(Overloaded, match="8 of 10 inputs wait already"):
        admission.take(3, "interactive")
    assert admission.num_accepted_items == 8
    admission.take(2, "interactive")
    assert admission.is_full()
    admission.give_back(8, "bulk")
    assert admission.num_items == {"interactive": 2, "bulk": 0}
    assert admission.num_refused == 1


def test_a_full_model_says_so_before_it_knows_the_request_and_counts_it() -> None:
    admission = Devices().admission(max_items=10)
    admission.take(10, "bulk")
    with pytest.raises(Overloaded):
        admission.take(1, "bulk")
    for num_refused in (2, 3):
        with pytest.raises(Overloaded, match="10 of 10 inputs wait already"):
            admission.check_room()
        assert admission.num_refused == num_refused
    admission.give_back(1, "bulk")
    admission.check_room()
    assert admission.num_refused == 3


def test_a_model_with_room_for_little_is_not_full() -> None:
    admission = Devices().admission(max_items=10)
    admission.take(9, "bulk")
    with pytest.raises(Overloaded):
        admission.take(2, "bulk")
    admission.check_room()
    admission.take(1, "bulk")


def test_a_request_that_will_never_fit_is_not_told_to_come_again() -> None:
    with pytest.raises(BadInput, match="11 inputs, more than the 10"):
        Devices().admission(max_items=10).take(11, "bulk")


def test_a_request_that_grows_is_counted_as_a_whole() -> None:
    admission = Devices().admission(max_items=10)
    admission.take(5, "bulk")
    with pytest.raises(BadInput, match="11 inputs"):
        admission.take(6, "bulk", num_total=11)
    admission.take(5, "bulk", num_total=10)
    assert admission.num_accepted_items == 10


def test_waiting_tokens_refuse_too() -> None:
    devices = Devices(backlog=Backlog(500, 0))
    with pytest.raises(Overloaded, match="500 tokens wait already, the limit is 500"):
        devices.admission(max_tokens=500).take(1, "interactive")


def test_nothing_is_refused_for_its_wait_before_the_speed_is_known() -> None:
    devices = Devices(backlog=Backlog(99_999, 0))
    devices.admission(max_wait_s=0.1).take(1000, "bulk")


def test_what_would_wait_too_long_is_refused_and_told_when_to_come_again() -> None:
    devices = Devices()
    admission = devices.admission(max_wait_s=9.0)
    devices.have_computed(num_items=100, num_tokens=10_000, busy_s=10.0)
    devices.backlog = Backlog(20_000, 0)  # twenty seconds of work

    with pytest.raises(Overloaded, match="about 20 s, the limit is 9 s") as caught:
        admission.take(1, "bulk")
    assert caught.value.retry_after_s == 10


def test_inputs_that_are_still_tokenized_count_as_waiting() -> None:
    devices = Devices()
    admission = devices.admission(max_wait_s=9.0)
    devices.have_computed(num_items=100, num_tokens=10_000, busy_s=10.0)
    admission.take(95, "bulk")
    with pytest.raises(Overloaded, match="about 10 s"):
        admission.take(1, "bulk")


def test_an_interactive_request_does_not_wait_for_bulk_work() -> None:
    devices = Devices()
    admission = devices.admission(max_wait_s=1.0)
    devices.have_computed(num_items=100, num_tokens=10_000, busy_s=10.0)
    admission.take(500, "interactive")
    admission.give_back(500, "interactive")
    devices.backlog = Backlog(90_000, 500)

    with pytest.raises(Overloaded):
        admission.take(1, "bulk")
    admission.take(1, "interactive")


def test_devices_side_by_side_are_as_fast_as_all_of_them() -> None:
    devices = Devices(backlog=Backlog(10_000, 0))
    devices.have_computed(num_items=100, num_tokens=10_000, busy_s=10.0, num_parallel=4)
    assert devices.admission().estimated_wait_s("bulk") == pytest.approx(2.5)


def test_the_speed_follows_what_the_device_does_now() -> None:
    devices = Devices(backlog=Backlog(10_000, 0))
    admission = devices.admission()
    devices.have_computed(num_items=10, num_tokens=10_000, busy_s=1.0)
    assert admission.estimated_wait_s("bulk") == pytest.approx(1.0)
    for second in range(2, 40):
        devices.have_computed(num_items=10 * second, num_tokens=10_000 + 1_000 * (second - 1), busy_s=second)
        admission.estimated_wait_s("bulk")
    assert admission.estimated_wait_s("bulk") == pytest.approx(10.0, rel=0.01)


@given(
    st.integers(0, 10**6),
    st.integers(0, 10**8),
    st.floats(0, 10**5),
    st.integers(1000, 10**7),
    st.floats(0, 100),
)
def test_who_is_refused_is_told_a_sane_number_of_seconds(
    num_items: int, num_tokens: int, busy_s: float, num_waiting: int, max_wait_s: float
) -> None:
    devices = Devices(backlog=Backlog(num_waiting, num_waiting))
    devices.have_computed(num_items=num_items, num_tokens=num_tokens, busy_s=busy_s)
    with pytest.raises(Overloaded) as caught:
        devices.admission(max_tokens=1000, max_wait_s=max_wait_s).take(1, "interactive")
    assert 1 <= caught.value.retry_after_s <= MAX_RETRY_AFTER_S


class AdmissionMachine(RuleBasedStateMachine):
    """Whatever is taken and given back, the count is that of what is there and never over the limit."""

    def __init__(self) -> None:
        super().__init__()
        self.admission = Devices().admission(max_items=50)
        self.taken: list[tuple[int, Lane]] = []

    @rule(num_items=st.integers(0, 60), lane=LANES)
    def take(self, num_items: int, lane: Lane) -> None:
        has_room = num_items + sum(each for each, _ in self.taken) <= 50
        try:
            self.admission.take(num_items, lane)
        except (Overloaded, BadInput):
            assert not has_room
        else:
            assert has_room
            self.taken.append((num_items, lane))

    @rule()
    def look_whether_there_is_room(self) -> None:
        """It may only be silent of a full model where nothing has been refused since there was room."""
        num_refused = self.admission.num_refused
        try:
            self.admission.check_room()
        except Overloaded:
            assert self.admission.is_full()
            assert self.admission.num_refused == num_refused + 1
        else:
            assert self.admission.num_refused == num_refused

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        each = data.draw(st.sampled_from(self.taken))
        self.taken.remove(each)
        self.admission.give_back(*each)

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.admission.num_accepted_items == sum(each for each, _ in self.taken) <= 50


TestAdmissionMachine = AdmissionMachine.TestCase
