"""Record the measurements of each engine, and choose the fastest of those that are accurate enough."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from infinity_emb.backends.accuracy import Accuracy
from infinity_emb.types import InferenceEngine

# An engine must be this much faster to replace the best so far. torch comes first and so wins a tie: it needs
# no export and computes every model.
WORTHWHILE_GAIN = 1.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The result of trying one engine.

    speed: relative to the first engine that could be measured, which is torch if it can load the model.
    accuracy: compared with torch in float32; None for that reference.
    rejection_reason: why the engine cannot be selected; empty if it can.
    lacks_memory: whether it is rejected for lack of memory, which unloading other models may fix.
    """

    engine: InferenceEngine
    dtype: str = ""
    speed: float = 1.0
    accuracy: Accuracy | None = None
    rejection_reason: str = ""
    lacks_memory: bool = False

    def __str__(self) -> str:
        if self.rejection_reason:
            return f"engine {self.engine}: rejected, {self.rejection_reason}"
        accuracy = "the reference" if self.accuracy is None else self.accuracy
        return f"engine {self.engine}: {self.dtype}, {self.speed:.2f}x, {accuracy}"


def select_fastest(measurements: Iterable[Measurement]) -> Measurement | None:
    """Return the best measurement, None if all are rejected. They are given in the order of measuring."""
    best: Measurement | None = None
    for measurement in measurements:
        is_accepted = not measurement.rejection_reason
        if is_accepted and (best is None or measurement.speed > best.speed * WORTHWHILE_GAIN):
            best = measurement
    return best


def format_table(measurements: Sequence[Measurement]) -> list[str]:
    """Return a line for each engine, with the selected one marked."""
    selected = select_fastest(measurements)
    return [f"{each}; selected" if each is selected else str(each) for each in measurements]


def summarize(measurements: Sequence[Measurement]) -> str:
    """Return the speeds in one line, for `engine_reason` in `/models`."""
    return "measured here: " + ", ".join(
        f"{each.engine} {'rejected' if each.rejection_reason else f'{each.speed:.2f}x'}"
        for each in measurements
    )
