"""Refuse requests that a model cannot serve, before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import TypeVar

from infinity_emb.engine.slot import ModelSlot
from infinity_emb.errors import BadInput, ModelNotDeployedError
from infinity_emb.items import TokenIdsInput
from infinity_emb.types import Capability

ValueT = TypeVar("ValueT")
_NO_LISTS = (str, bytes, bytearray, Mapping, Set)


def check_capability(slot: ModelSlot, capability: Capability) -> None:
    """Raise ModelNotDeployedError for a task that the model does not support."""
    if capability not in slot.info.capabilities:
        supported = ", ".join(slot.info.capabilities)
        raise ModelNotDeployedError(
            f"model {slot.name!r} does not support {capability!r}; it supports {supported}"
        )


def list_values(values: Iterable[ValueT], *, name: str, what: str = "texts") -> Sequence[ValueT]:
    """Return the values of a list, a tuple, an array, a Series or an iterator, in order.

    Raises BadInput for anything else: a text is a sequence of texts to Python, and a set has no order.
    """
    if isinstance(values, (list, tuple)):
        return values
    if isinstance(values, _NO_LISTS) or not isinstance(values, Iterable):
        remedy = f"; give [{name}] for a single one" if isinstance(values, (str, bytes)) else ""
        raise BadInput(f"{name} must be a list of {what}, not {type(values).__name__}{remedy}")
    return list(values)


def check_texts(
    texts: Sequence[str | TokenIdsInput], *, name: str = "sentences", allows_token_ids: bool = False
) -> None:
    """Raise BadInput unless these are one or more texts, or token ids where those are allowed."""
    if not texts:
        raise BadInput(f"{name} is empty; give at least one text")
    if set(map(type, texts)) == {str}:
        return
    for position, text in enumerate(texts):
        if not isinstance(text, str) and not (allows_token_ids and isinstance(text, TokenIdsInput)):
            raise BadInput(f"{name}[{position}] is {type(text).__name__}, not a text")
