"""Measure whether a model's vectors have length 1, and how many dimensions they have.

Not every model that should have a Normalize module has one. Vector stores that compare by inner product then
rank wrongly, without an error.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from infinity_emb.backends.base import LoadedModel
from infinity_emb.errors import ServingError
from infinity_emb.items import InputOptions, number_inputs

logger = logging.getLogger("infinity_emb")

_TEXTS = ("Munich", "The sky is blue, and the grass is green.")
# Lengths of vectors of bfloat16 networks are a few thousandths off.
_TOLERANCE = 0.01


def measure_vector_length(model: LoadedModel) -> LoadedModel:
    """Return the model with `is_normalized` in its info, if it has dense vectors of texts.

    The dimensions of its info are corrected if its files name more than the vectors have.
    """
    if "dense" not in model.info.outputs or model.info.is_normalized is not None:
        return model
    try:
        batch = model.encode(number_inputs(_TEXTS), InputOptions())
        outputs = model.replicas[0].launch(batch).result()
    except (ServingError, RuntimeError):  # `startup_check` reports what is wrong with a model
        return model
    vectors = np.asarray(outputs["dense"], dtype=np.float32)  # (2, D)
    is_normalized = bool((np.abs(np.linalg.norm(vectors, axis=1) - 1) <= _TOLERANCE).all())
    named, width = model.info.embedding_dimension, vectors.shape[1]
    if width < named:
        logger.warning(
            "the model's files say that vectors have %d dimensions, but they have %d", named, width
        )
    info = replace(model.info, is_normalized=is_normalized, embedding_dimension=min(named, width))
    return replace(model, info=info)
