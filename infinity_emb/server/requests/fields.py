"""Combine the fields of a request: aliases, truncation and limits on the number of items.

Contradictions and excess raise a 422.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from infinity_emb.items import TokenIdsInput
from infinity_emb.server.request_errors import body_error
from infinity_emb.server.schemas.inputs import TOKEN_IDS_MESSAGE
from infinity_emb.types import TokenIdPolicy, Truncation

FieldT = TypeVar("FieldT")


def merge_aliases(**given: FieldT | None) -> FieldT | None:
    """Return the value of fields with the same meaning, or None. Raises a 422 if they differ."""
    names = [name for name, value in given.items() if value is not None]
    if not names:
        return None
    for name in names[1:]:
        if given[name] != given[names[0]]:
            message = f"conflicts with {names[0]!r}; send only one"
            raise body_error("contradiction", message, loc=[name], given=given[name])
    return given[names[0]]


def choose_truncation(truncate: Truncation | None, **side: Truncation | None) -> Truncation:
    """Combine whether and where to truncate. Raises a 422 if both fields name a side and they differ.

    side: the field that names the side, by its name in the request. It does not turn truncation on: with
    truncate=false a text that is too long is rejected.
    """
    [(name, asked)] = side.items()
    if asked is None or truncate == "off":
        return truncate or "model"
    if truncate in ("left", "right") and truncate != asked:
        message = f"is {asked!r}, which conflicts with 'truncate'; send only one"
        raise body_error("contradiction", message, loc=[name], given=asked)
    return asked


def check_num_items(items: Sequence[object], *, limit: int, name: str, remedy: str = "") -> None:
    """Raise a 422 if a field has more items than allowed; `remedy` is appended to the message."""
    if len(items) > limit:
        message = f"has {len(items)} items, the limit is {limit}; send several requests{remedy}"
        raise body_error("too_long", message, loc=[name], given=items)


def check_token_ids_allowed(inputs: Sequence[object], policy: TokenIdPolicy, *, name: str) -> None:
    """Raise a 422 for token ids if the model is served without them; `name` is the field of the inputs."""
    if policy is TokenIdPolicy.refuse and TokenIdsInput in set(map(type, inputs)):
        raise body_error("string_type", TOKEN_IDS_MESSAGE, loc=[name])
