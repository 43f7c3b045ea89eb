"""Keep a model in half precision on a CPU only where that is faster than float32."""

from __future__ import annotations

import logging
from collections.abc import Callable

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.model import BaseModel

from infinity_emb.backends.closeness import measure_change
from infinity_emb.backends.torch.device import Choice
from infinity_emb.backends.torch.int8.quantize import compute_answers, measure_answer_s, score_answers
from infinity_emb.types import ModelKind

logger = logging.getLogger("infinity_emb")


def keep_half_if_faster(
    model: BaseModel, kind: ModelKind, dtype: Choice, load_full: Callable[[], BaseModel]
) -> tuple[BaseModel, Choice]:
    """Return the model in half precision if it is faster than float32, which on many CPUs it is not.

    load_full: load the model in float32 from its files, since weights in half precision are rounded.
    """
    full = load_full()
    if not isinstance(model, SentenceTransformer):
        return full, Choice("float32", f"{dtype.value} was requested, but CPUs compute it slower")
    half_s, full_s = (measure_answer_s(candidate) for candidate in (model, full))
    if half_s < full_s:
        new, old = (score_answers(each, kind, compute_answers(each, kind)) for each in (model, full))
        reason = f"measured {full_s / half_s:.1f}x as fast as float32 here, {measure_change(new, old)}"
        return model, Choice(dtype.value, reason)
    reason = f"{dtype.value} was requested, but measured {half_s / full_s:.1f}x slower on this CPU"
    logger.warning("using float32: %s", reason)
    return full, Choice("float32", reason)
