"""Measure whether a model's vectors have length 1.

Not every model that should have a Normalize module has one. Vector stores that compare by inner product then
rank wrongly, without an error.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from infinity_emb.backends.base import LoadedModel
from infinity_emb.errors import ServingError
from infinity_emb.items import InputOptions, number_inputs

_TEXTS = ("Munich", "The sky is blue, and the grass is green.")
# Vectors of bfloat16 networks are a few thousandths off.
_TOLERANCE = 0.01


def measure_vector_length(model: LoadedModel) -> LoadedModel:
    """Return the model with `is_normalized` in its info, if it has dense vectors of texts."""
    if "dense" not in model.info.outputs or model.info.is_normalized is not None:
        return model
    try:
        batch = model.encode(number_inputs(_TEXTS), InputOptions())
        outputs = model.replicas[0].launch(batch).result()
    except (ServingError, RuntimeError):  # whatever is wrong with the model, this is not the place to say it
        return model
    lengths = np.linalg.norm(np.asarray(outputs["dense"], dtype=np.float32), axis=1)  # (2,)
    is_normalized = bool((np.abs(lengths - 1) <= _TOLERANCE).all())
    return replace(model, info=replace(model.info, is_normalized=is_normalized))
