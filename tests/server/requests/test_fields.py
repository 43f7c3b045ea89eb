from __future__ import annotations

import pytest
from fastapi.exceptions import RequestValidationError

from infinity_emb.items import TokenIdsInput
from infinity_emb.server.requests.fields import (
    check_num_items,
    check_token_ids_allowed,
    choose_truncation,
    merge_aliases,
)
from infinity_emb.types import TokenIdPolicy, Truncation


@pytest.mark.parametrize(
    ("given", "merged"),
    [
        ({"task": None, "input_type": None}, None),
        ({"task": "query", "input_type": None}, "query"),
        ({"task": None, "input_type": "query"}, "query"),
        ({"task": "query", "input_type": "query"}, "query"),
        ({"task": 0, "input_type": None}, 0),
    ],
)
def test_aliases_are_merged(given: dict[str, object], merged: object) -> None:
    assert merge_aliases(**given) == merged


def test_aliases_that_differ_are_rejected() -> None:
    with pytest.raises(RequestValidationError) as caught:
        merge_aliases(top_n=1, top_k=2)
    [error] = caught.value.errors()
    assert (error["loc"], error["input"]) == (["body", "top_k"], 2)
    assert error["msg"] == "conflicts with 'top_n'; send only one"


@pytest.mark.parametrize(
    ("truncate", "side", "chosen"),
    [
        (None, None, "model"),
        ("model", None, "model"),
        ("off", None, "off"),
        ("off", "left", "off"),  # a side does not turn truncation on
        (None, "left", "left"),
        ("model", "right", "right"),
        ("left", "left", "left"),
    ],
)
def test_a_side_is_combined_with_whether_to_truncate(
    truncate: Truncation | None, side: Truncation | None, chosen: Truncation
) -> None:
    assert choose_truncation(truncate, truncation_side=side) == chosen


def test_two_different_sides_are_rejected_at_the_field_of_the_side() -> None:
    with pytest.raises(RequestValidationError) as caught:
        choose_truncation("left", truncation_direction="right")
    [error] = caught.value.errors()
    assert error["loc"] == ["body", "truncation_direction"]


def test_more_items_than_allowed_are_rejected_with_the_limit_and_a_remedy() -> None:
    check_num_items(["a", "b"], limit=2, name="input")
    with pytest.raises(RequestValidationError) as caught:
        check_num_items(["a", "b", "c"], limit=2, name="texts", remedy=", or ask an administrator")
    [error] = caught.value.errors()
    assert error["loc"] == ["body", "texts"]
    assert error["msg"] == "has 3 items, the limit is 2; send several requests, or ask an administrator"


@pytest.mark.parametrize("policy", [TokenIdPolicy.model, TokenIdPolicy.cl100k])
def test_token_ids_pass_if_the_model_is_served_with_them(policy: TokenIdPolicy) -> None:
    check_token_ids_allowed(["a", TokenIdsInput((1, 2))], policy, name="input")


def test_token_ids_are_rejected_by_default() -> None:
    policy = TokenIdPolicy.refuse
    check_token_ids_allowed(["a"], policy, name="input")
    with pytest.raises(RequestValidationError, match="token ids are not accepted"):
        check_token_ids_allowed(["a", TokenIdsInput((1, 2))], policy, name="input")
