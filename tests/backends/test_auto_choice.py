from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infinity_emb.agreement import BOUNDS
from infinity_emb.backends.auto_choice import (
    WORTHWHILE_GAIN,
    Agreement,
    Trial,
    bound_of,
    choose,
    complaint,
    reason_of,
    rows_of,
)
from infinity_emb.primitives import Dtype, InferenceEngine

TORCH, ONNX, CT2 = InferenceEngine.torch, InferenceEngine.optimum, InferenceEngine.ctranslate2

trials = st.lists(
    st.builds(
        Trial,
        engine=st.sampled_from([ONNX, CT2]),
        speed=st.floats(0.01, 100),
        failure=st.sampled_from(["", "", "too far"]),
    ),
    max_size=6,
)


@given(others=trials)
def test_nothing_that_could_be_served_is_worth_more_than_what_is_chosen(others: list[Trial]) -> None:
    chosen = choose(others)
    able = [trial for trial in others if not trial.failure]
    assert (chosen is None) == (not able)
    if chosen is not None:
        assert chosen in able
        assert max(trial.speed for trial in able) <= chosen.speed * WORTHWHILE_GAIN


@given(others=trials)
def test_torch_is_left_only_for_an_engine_that_is_clearly_faster(others: list[Trial]) -> None:
    chosen = choose([Trial(engine=TORCH), *others])
    is_beaten = any(trial.speed > WORTHWHILE_GAIN for trial in others if not trial.failure)
    assert chosen is not None
    assert (chosen.engine is not TORCH) == is_beaten


@given(others=trials)
def test_an_engine_that_failed_changes_nothing(others: list[Trial]) -> None:
    assert choose(others) is choose([trial for trial in others if not trial.failure])


@pytest.mark.parametrize(
    ("asked", "usual", "format_of_bound"),
    [
        ("auto", "float32", "float32"),
        ("auto", "bfloat16", "bfloat16"),
        ("int8", "float32", "int8"),
        ("float32", "bfloat16", "float32"),
        ("auto", "int3_of_somebody", "float32"),
    ],
)
def test_the_bound_is_that_of_the_number_format_asked_for_or_else_usual(
    asked: str, usual: str, format_of_bound: str
) -> None:
    assert bound_of(Dtype(asked), usual) == BOUNDS[format_of_bound]


@pytest.mark.parametrize(
    ("agreement", "told"),
    [
        (Agreement(1.0, 9e-5), ""),
        (Agreement(0.99995, 0.0), ""),
        (Agreement(None, 9e-5), ""),
        (Agreement(1.0, 2e-4), "differs from torch by 2e-04, the limit is 1e-04"),
        (Agreement(None, math.inf), "differs from torch by inf, the limit is 1e-04"),
        (Agreement(0.998, 0.0), "has a cosine of 0.99800 to torch's vectors, the limit is 0.9999"),
        (Agreement(math.nan, 0.0), "has a cosine of nan to torch's vectors, the limit is 0.9999"),
        (Agreement(1.0, math.nan), "differs from torch by nan, the limit is 1e-04"),
    ],
)
def test_answers_that_are_too_far_away_are_told_with_the_number_and_the_limit(
    agreement: Agreement, told: str
) -> None:
    assert complaint(agreement, BOUNDS["float32"]) == told


def test_the_table_has_a_line_for_each_engine_and_names_the_chosen_one() -> None:
    measured = [
        Trial(engine=TORCH, dtype="float32"),
        Trial(engine=ONNX, dtype="float32", speed=1.314, agreement=Agreement(0.9999998, 3e-7)),
        Trial(engine=CT2, failure="it has 2 networks"),
    ]
    assert rows_of(measured) == [
        "engine torch: float32, 1.00x, the reference",
        "engine optimum: float32, 1.31x, cosine 0.9999998, difference 3e-07; chosen",
        "engine ctranslate2: out, it has 2 networks",
    ]
    assert reason_of(measured) == "measured here: torch 1.00x, optimum 1.31x, ctranslate2 out"


def test_scores_have_no_cosine() -> None:
    assert str(Agreement(None, 2e-6)) == "difference 2e-06"
