"""What members of a request say together: two names for one thing, where to cut, how many there may be.

Contradictions and excess are raised as a 422. Knows nothing of engines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from infinity_emb.primitives import Truncation
from infinity_emb.server.validation import body_error

MemberT = TypeVar("MemberT")


def agreed(**given: MemberT | None) -> MemberT | None:
    """The value of members that mean the same; None where none was given. Raises a 422 where two differ."""
    names = [name for name, value in given.items() if value is not None]
    for name in names[1:]:
        if given[name] != given[names[0]]:
            message = f"means the same as {names[0]!r}, and the two differ; give one of them"
            raise body_error("contradiction", message, loc=[name], given=given[name])
    return given[names[0]] if names else None


def choose_truncation(truncate: Truncation | None, **side: Truncation | None) -> Truncation:
    """Where a text that is too long is cut, if at all. Raises a 422 for two sides.

    side: under the member's name. It does not say whether to cut: with truncate=false a text is refused.
    """
    [(name, asked)] = side.items()
    if asked is None or truncate == "off":
        return truncate or "model"
    if truncate in ("left", "right") and truncate != asked:
        message = f"is {asked!r}, and 'truncate' names the other side; give one of them"
        raise body_error("contradiction", message, loc=[name], given=asked)
    return asked


def check_num_members(members: Sequence[object], *, limit: int, name: str, way_out: str = "") -> None:
    """Raises a 422 for more inputs than one request may have; `way_out` is what else the user can do."""
    if len(members) > limit:
        message = f"has {len(members)} members, the limit is {limit}; send several requests{way_out}"
        raise body_error("too_long", message, loc=[name], given=members)
