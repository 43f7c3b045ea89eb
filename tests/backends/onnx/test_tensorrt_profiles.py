from __future__ import annotations

from typing import Any

import pytest

from infinity_emb.backends.onnx.tensorrt_profiles import (
    ShapeLimits,
    choose_shape_limits,
    make_profile_options,
)
from infinity_emb.config.engine_args import EngineArgs


def args(**options: Any) -> EngineArgs:
    return EngineArgs(model_name_or_path="m", engine="onnx", **options)


@pytest.mark.parametrize(
    ("max_tokens", "options", "expected"),
    [
        (512, {}, ShapeLimits(128, 512)),
        (256, {}, ShapeLimits(256, 256)),
        (16, {}, ShapeLimits(1024, 16)),
        (8192, {}, ShapeLimits(2, 8192)),
        (512, {"batch_size": 32}, ShapeLimits(32, 512)),
        (
            512,
            {"max_batch_tokens": 4096},
            ShapeLimits(128, 512),
        ),  # as measured, where a model is loaded again
        (32_768, {}, None),
    ],
)
def test_a_box_holds_the_longest_texts_and_no_more_memory_than_a_batch_takes(
    max_tokens: int, options: dict[str, Any], expected: ShapeLimits | None
) -> None:
    assert choose_shape_limits(max_tokens, args(**options)) == expected


def test_a_sparse_model_s_box_has_room_for_the_scores_of_all_words() -> None:
    assert choose_shape_limits(512, args(), num_scores=30_522) == ShapeLimits(68, 512)
    assert choose_shape_limits(512, args(), num_scores=250_002) == ShapeLimits(8, 512)


def test_the_options_are_tensorrt_s_words() -> None:
    told = make_profile_options(ShapeLimits(128, 512))
    inputs = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
    assert told == {
        "trt_profile_min_shapes": ",".join(f"{name}:1x1" for name in inputs),
        "trt_profile_opt_shapes": ",".join(f"{name}:128x128" for name in inputs),
        "trt_profile_max_shapes": ",".join(f"{name}:128x512" for name in inputs),
    }


@pytest.mark.parametrize("max_tokens", [1, 7, 128, 500, 8192, 11_000])
@pytest.mark.parametrize("batch_size", [1, 3, 1024])
def test_what_is_made_fastest_lies_in_the_box(max_tokens: int, batch_size: int) -> None:
    limits = choose_shape_limits(max_tokens, args(batch_size=batch_size))
    assert limits is not None
    told = make_profile_options(limits)["trt_profile_opt_shapes"]
    items, tokens = (int(each) for each in told.partition(",")[0].partition(":")[2].split("x"))
    assert 1 <= items <= limits.max_items <= batch_size
    assert 1 <= tokens <= limits.max_tokens == max_tokens
