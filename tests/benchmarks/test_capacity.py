"""The arithmetic of docs/scaling.md, against a simulation with service times that were measured."""

from __future__ import annotations

import math
import re

import pytest

from benchmarks.capacity import (
    ServiceTime,
    cost_per_billion_tokens,
    count_front_ends,
    count_replicas,
    estimate_batch_tokens,
    estimate_busy_ratio,
    fit_service_time,
    network_bits_per_s,
)
from benchmarks.queue_simulation import Load, simulate
from benchmarks.scaling import LENGTHS, MEASURED
from scripts.site.pages import read_page

BUDGET = 1024
CAPACITY = MEASURED.tokens_per_s(BUDGET)
MEAN_TOKENS = sum(LENGTHS) / len(LENGTHS)


def test_a_line_through_measured_batches_is_found() -> None:
    truth = ServiceTime(batch_s=0.004, token_s=0.0002)
    tokens = [16, 64, 256, 1024, 4096]
    fitted = fit_service_time(tokens, [truth.of_batch(each) for each in tokens])
    assert fitted.batch_s == pytest.approx(truth.batch_s)
    assert fitted.token_s == pytest.approx(truth.token_s)


@pytest.mark.parametrize("num_replicas", [1, 2, 8])
def test_more_load_than_capacity_is_computed_at_capacity(num_replicas: int) -> None:
    load = Load(tokens_per_s=3 * CAPACITY * num_replicas, request_tokens=LENGTHS)
    outcome = simulate(load, MEASURED, num_replicas=num_replicas, max_tokens=BUDGET)
    # Batches are not filled to the last token: the next request does not fit.
    assert outcome.tokens_per_s == pytest.approx(CAPACITY * num_replicas, rel=0.05)
    assert outcome.busy_ratio > 0.97


@pytest.mark.parametrize("share", [0.2, 0.5, 0.7])
def test_replicas_are_no_busier_than_estimated(share: float) -> None:
    load = Load(tokens_per_s=share * CAPACITY * 4, request_tokens=LENGTHS)
    outcome = simulate(load, MEASURED, num_replicas=4, max_tokens=BUDGET)
    bound = estimate_busy_ratio(load.tokens_per_s, MEASURED, num_replicas=4, request_tokens=MEAN_TOKENS)
    assert share * 0.9 < outcome.busy_ratio <= bound * 1.03


@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_batches_grow_to_what_arrives_meanwhile(share: float) -> None:
    load = Load(tokens_per_s=share * CAPACITY, request_tokens=LENGTHS)
    outcome = simulate(load, MEASURED, num_replicas=1, max_tokens=BUDGET)
    estimate = estimate_batch_tokens(
        load.tokens_per_s, MEASURED, num_replicas=1, request_tokens=MEAN_TOKENS, max_tokens=BUDGET
    )
    assert estimate / 3 < outcome.batch_tokens < estimate * 3


@pytest.mark.parametrize("wanted", [0.5, 3, 20])
def test_the_counted_replicas_answer_within_a_few_batches(wanted: float) -> None:
    tokens_per_s = wanted * CAPACITY
    num_replicas = count_replicas(tokens_per_s, MEASURED, batch_tokens=BUDGET)
    load = Load(tokens_per_s=tokens_per_s, request_tokens=LENGTHS)
    outcome = simulate(load, MEASURED, num_replicas=num_replicas, max_tokens=BUDGET)
    assert outcome.tokens_per_s == pytest.approx(tokens_per_s, rel=0.05)
    assert outcome.p99_s < 3 * MEASURED.of_batch(BUDGET)
    if num_replicas > 1:
        fewer = simulate(load, MEASURED, num_replicas=math.floor(wanted), max_tokens=BUDGET)
        assert fewer.p99_s > 3 * outcome.p99_s


def test_one_queue_is_faster_than_least_outstanding_and_that_than_round_robin() -> None:
    load = Load(tokens_per_s=0.8 * CAPACITY * 4, request_tokens=LENGTHS)
    p99_s = [
        simulate(load, MEASURED, num_replicas=4, max_tokens=BUDGET, balancing=balancing).p99_s
        for balancing in ("one queue", "least outstanding", "round robin")
    ]
    assert p99_s == sorted(p99_s)


def test_every_request_is_answered_once() -> None:
    load = Load(tokens_per_s=CAPACITY, request_tokens=[7], num_requests=500)
    outcome = simulate(load, MEASURED, num_replicas=3, max_tokens=BUDGET, balancing="round robin")
    assert outcome.median_s >= MEASURED.of_batch(7)
    assert outcome.batch_tokens % 1 >= 0
    assert outcome.tokens_per_s < 2 * CAPACITY


def test_costs_follow_from_price_and_rate() -> None:
    assert cost_per_billion_tokens(3.6, 1_000_000) == pytest.approx(1.0)
    assert cost_per_billion_tokens(3.6, 1_000_000, busy_ratio=0.5) == pytest.approx(2.0)


def test_front_ends_and_network_follow_from_requests() -> None:
    assert count_front_ends(1_000_000, request_tokens=1000, request_cpu_s=0.0014) == 2
    assert network_bits_per_s(1_000_000, request_tokens=1000, request_bytes=10_000) == pytest.approx(80e6)


def test_the_page_states_the_figures_that_it_calculates_with() -> None:
    page = read_page("docs/scaling.md")
    assert f"{MEASURED.batch_s * 1000:.1f} ms" in page
    assert f"{MEASURED.token_s * 1e6:.0f} µs" in page
    assert re.search(rf"\b{CAPACITY:,.0f} tokens/s", page)
