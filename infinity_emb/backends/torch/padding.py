"""Group sequences so that padding each group to its longest sequence wastes little work."""

from __future__ import annotations


def group_by_length(lengths: list[int], *, max_padding: float) -> list[tuple[int, int]]:
    """Cut a batch into runs that may be padded to one length.

    lengths: token counts in ascending order.
    max_padding: maximum fraction of padding in a group.
    Returns (start, end) pairs that cover the whole list in order.
    """
    groups: list[tuple[int, int]] = []
    start, tokens = 0, 0
    for position, length in enumerate(lengths):
        padded = length * (position - start + 1)
        if position > start and padded - (tokens + length) > max_padding * padded:
            groups.append((start, position))
            start, tokens = position, 0
        tokens += length
    if lengths:
        groups.append((start, len(lengths)))
    return groups
