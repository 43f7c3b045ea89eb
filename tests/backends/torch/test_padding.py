from __future__ import annotations

from itertools import pairwise

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infinity_emb.backends.torch.padding import group_by_length

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@unhurried
@given(st.lists(st.integers(0, 2000)).map(sorted), st.floats(0, 0.9))
def test_groups_cover_the_whole_list_in_order(lengths: list[int], max_padding: float) -> None:
    groups = group_by_length(lengths, max_padding=max_padding)

    assert [position for start, end in groups for position in range(start, end)] == list(range(len(lengths)))
    assert all(start < end for start, end in groups)


@unhurried
@given(st.lists(st.integers(0, 2000)).map(sorted), st.floats(0, 0.9))
def test_groups_stay_within_their_padding_and_are_not_cut_without_need(
    lengths: list[int], max_padding: float
) -> None:
    groups = group_by_length(lengths, max_padding=max_padding)

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
    assert group_by_length([2, 2, 2, 3, 5, 5], max_padding=0) == [(0, 3), (3, 4), (4, 6)]
    assert group_by_length([], max_padding=0) == []
