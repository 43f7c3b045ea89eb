"""What the tasks of one model have in common. Knows nothing of a particular task."""

from __future__ import annotations

from collections.abc import Sequence

from infinity_emb.backends.base import Ids
from infinity_emb.errors import BadInput
from infinity_emb.primitives import ModelInfo
from infinity_emb.running_model import RunningModel


class OneModel:
    """What the tasks of one model have in common."""

    _running: RunningModel

    @property
    def info(self) -> ModelInfo:
        """What was detected about the model."""
        return self._running.info


def check_texts(texts: Sequence[str | Ids], *, name: str = "sentences", or_ids: bool = False) -> None:
    """Raises BadInput unless `texts` is a list of one or more strings, or token ids where they may be."""
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise BadInput(f"{name} must be a list of texts, not {type(texts).__name__}")
    if not texts:
        raise BadInput(f"{name} is empty; give at least one text")
    for position, text in enumerate(texts):
        if not isinstance(text, str) and not (or_ids and isinstance(text, Ids)):
            raise BadInput(f"{name}[{position}] is {type(text).__name__}, not a text")
