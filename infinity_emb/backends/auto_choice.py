"""Which engine is chosen: the fastest of those whose answers are near enough to torch's in float32.

Pure rules over what was measured, and how that is told. Knows nothing of models, clocks or files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from infinity_emb.agreement import BOUNDS, Bound
from infinity_emb.primitives import Dtype, InferenceEngine

# An engine must be so much faster to take the place of the best so far. torch comes first, and so keeps its
# place in a tie: nothing is exported for it, and it computes every model.
WORTHWHILE_GAIN = 1.05


class Agreement(NamedTuple):
    """How near answers were to torch's in float32; cosine: the lowest of vectors, None for scores."""

    cosine: float | None
    difference: float

    def __str__(self) -> str:
        difference = f"difference {self.difference:.0e}"
        return difference if self.cosine is None else f"cosine {self.cosine:.7f}, {difference}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What came of one engine.

    speed: as a multiple of the first engine that could be measured, which is torch where it computes.
    failure: why it cannot be chosen; empty where it can.
    lacks_memory: whether that is for lack of memory, and could be otherwise when other models are unloaded.
    """

    engine: InferenceEngine
    dtype: str = ""
    speed: float = 1.0
    agreement: Agreement | None = None
    failure: str = ""
    lacks_memory: bool = False


def bound_of(asked: Dtype, usual: str) -> Bound:
    """The bound of the number format that was asked for.

    usual: what torch takes where none is asked for; an unknown format has to be exact.
    """
    name = usual if asked is Dtype.auto else asked.value
    return BOUNDS.get(name, BOUNDS[Dtype.float32.value])


def complaint(agreement: Agreement, bound: Bound) -> str:
    """What is wrong with an engine's answers; empty where they are near enough."""
    if not agreement.difference <= bound.difference:
        return f"differs from torch by {agreement.difference:.0e}, the limit is {bound.difference:.0e}"
    if agreement.cosine is not None and not agreement.cosine >= bound.cosine:
        return f"has a cosine of {agreement.cosine:.5f} to torch's vectors, the limit is {bound.cosine}"
    return ""


def choose(trials: Iterable[Trial]) -> Trial | None:
    """The best of them, measured in this order; None where every one has failed."""
    best: Trial | None = None
    for trial in trials:
        if not trial.failure and (best is None or trial.speed > best.speed * WORTHWHILE_GAIN):
            best = trial
    return best


def rows_of(trials: Sequence[Trial]) -> list[str]:
    """The table, a line for each engine."""
    chosen = choose(trials)
    return [f"engine {trial.engine}: {_told(trial)}{'; chosen' * (trial is chosen)}" for trial in trials]


def reason_of(trials: Sequence[Trial]) -> str:
    """The same in one line, for `/models`."""
    return "measured here: " + ", ".join(
        f"{trial.engine} {'out' if trial.failure else f'{trial.speed:.2f}x'}" for trial in trials
    )


def _told(trial: Trial) -> str:
    if trial.failure:
        return f"out, {trial.failure}"
    nearness = "the reference" if trial.agreement is None else trial.agreement
    return f"{trial.dtype}, {trial.speed:.2f}x, {nearness}"
