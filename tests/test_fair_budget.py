"""Amounts that clients share: a limit for all together, and room for those that hold less than others."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from infinity_emb.fair_budget import FairBudget


def fill(budget: FairBudget, client: str, amount: float) -> float:
    """Take as often as there is room; return how much that was."""
    total = 0.0
    while budget.take(client, amount):
        total += amount
    return total


def test_a_client_alone_gets_all_of_it_and_others_find_room() -> None:
    budget = FairBudget(8000)
    assert fill(budget, "hog", 1) == 8000
    assert fill(budget, "other", 1) == 888
    assert budget.take("third", 1)
    budget.give_back("hog", 8000)
    assert fill(budget, "other", 1) > 6000


def test_an_amount_up_to_the_limit_has_room() -> None:
    budget = FairBudget(10)
    assert not budget.take("a", 11)
    assert budget.take("a", 10)
    assert not budget.take("a", 1)
    assert budget.take("b", 1)


STEPS = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 60), st.booleans()), max_size=60)


@given(STEPS)
def test_the_limit_holds_and_nothing_is_lost(steps: list[tuple[str, int, bool]]) -> None:
    budget = FairBudget(100)
    held: dict[str, list[int]] = {client: [] for client in "abcd"}
    for client, amount, is_taken in steps:
        if not is_taken and held[client]:
            budget.give_back(client, held[client].pop())
        elif budget.take(client, amount):
            held[client].append(amount)
        else:
            assert sum(map(sum, held.values())) + amount > 100
        assert budget.total == sum(map(sum, held.values())) <= 112.5
        assert all(sum(amounts) <= 100 for amounts in held.values())
    for client, amounts in held.items():
        for amount in amounts:
            budget.give_back(client, amount)
    assert budget.total == 0
    assert budget.take("e", 100)


@given(st.lists(st.floats(0.01, 10), max_size=50))
def test_fractions_leave_no_rest(amounts: list[float]) -> None:
    budget = FairBudget(10**6)
    taken = [amount for amount in amounts if budget.take("a", amount)]
    for amount in reversed(taken):
        budget.give_back("a", amount)
    assert not budget._held
    assert budget.take("b", 10**6 - 1)
