"""Models of texts and images whose file lacks a part: what is used is refused, what is not is served."""

from __future__ import annotations

from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer

from infinity_emb.errors import StartupError
from tests.parity import references
from tests.parity.conftest import Serve
from tests.parity.serving import assert_same_vectors
from tests.support.small_models.changes import drop_weights
from tests.support.small_models.media import save_clip

pytestmark = [pytest.mark.model, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize(
    "pattern", [r"vision_model\.encoder\.layers\.1", r"text_model\.encoder\.layers\.1", "visual_projection"]
)
def test_a_part_that_texts_or_images_pass_is_refused(pattern: str, serve: Serve, tmp_path: Path) -> None:
    path = save_clip(tmp_path)
    drop_weights(path, pattern)
    with pytest.raises(StartupError, match=pattern):
        serve(path)


def test_a_scale_of_training_alone_may_be_missing(serve: Serve, texts: list[str], tmp_path: Path) -> None:
    path = save_clip(tmp_path)
    drop_weights(path, "logit_scale")
    expected = references.vectors(SentenceTransformer(str(path), device="cpu").encode, texts[:4])
    assert_same_vectors(serve(path).embed(texts[:4]), expected)
