from __future__ import annotations

import bisect

from hypothesis import given
from hypothesis import strategies as st

from infinity_emb.scheduling.histogram import Histogram, StageHistograms

values = st.floats(0, 1e6, allow_nan=False)


@given(st.lists(values, min_size=1, max_size=8, unique=True).map(sorted), st.lists(values))
def test_each_value_counts_in_the_first_bucket_that_holds_it(
    bounds: list[float], observed: list[float]
) -> None:
    histogram = Histogram(bounds)
    for value in observed:
        histogram.observe(value)
    counts = histogram.snapshot().counts
    assert sum(counts) == len(observed)
    for index, bound in enumerate(bounds):
        assert sum(counts[: index + 1]) == bisect.bisect_right(sorted(observed), bound)
    assert histogram.snapshot().total == sum(observed)


def test_a_snapshot_does_not_change_with_later_values() -> None:
    stages = StageHistograms()
    before = stages.snapshot()
    stages.queue_s.observe(0.002)
    assert sum(before["queue_s"].counts) == 0
    assert sum(stages.snapshot()["queue_s"].counts) == 1
