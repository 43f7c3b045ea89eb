from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from infinity_emb.backends.accuracy import Accuracy
from infinity_emb.backends.auto.measurement import (
    WORTHWHILE_GAIN,
    Measurement,
    format_table,
    select_fastest,
    summarize,
)
from infinity_emb.types import InferenceEngine

TORCH, ONNX, CT2 = InferenceEngine.torch, InferenceEngine.optimum, InferenceEngine.ctranslate2

measurements = st.lists(
    st.builds(
        Measurement,
        engine=st.sampled_from([ONNX, CT2]),
        speed=st.floats(0.01, 100),
        rejection_reason=st.sampled_from(["", "", "too far"]),
    ),
    max_size=6,
)


@given(others=measurements)
def test_no_accepted_engine_is_clearly_faster_than_the_selected_one(others: list[Measurement]) -> None:
    selected = select_fastest(others)
    accepted = [each for each in others if not each.rejection_reason]
    assert (selected is None) == (not accepted)
    if selected is not None:
        assert selected in accepted
        assert max(each.speed for each in accepted) <= selected.speed * WORTHWHILE_GAIN


@given(others=measurements)
def test_torch_is_replaced_only_by_an_engine_that_is_clearly_faster(others: list[Measurement]) -> None:
    selected = select_fastest([Measurement(engine=TORCH), *others])
    is_beaten = any(each.speed > WORTHWHILE_GAIN for each in others if not each.rejection_reason)
    assert selected is not None
    assert (selected.engine is not TORCH) == is_beaten


@given(others=measurements)
def test_a_rejected_engine_changes_nothing(others: list[Measurement]) -> None:
    assert select_fastest(others) is select_fastest([each for each in others if not each.rejection_reason])


def test_the_table_has_a_line_for_each_engine_and_marks_the_selected_one() -> None:
    measured = [
        Measurement(engine=TORCH, dtype="float32"),
        Measurement(engine=ONNX, dtype="float32", speed=1.314, accuracy=Accuracy(3e-7, 0.9999998, 1.0)),
        Measurement(engine=CT2, rejection_reason="it has 2 networks"),
    ]
    assert format_table(measured) == [
        "engine torch: float32, 1.00x, the reference",
        "engine optimum: float32, 1.31x, cosine 0.9999998, difference 3e-07; selected",
        "engine ctranslate2: rejected, it has 2 networks",
    ]
    assert summarize(measured) == "measured here: torch 1.00x, optimum 1.31x, ctranslate2 rejected"
