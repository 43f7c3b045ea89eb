"""Script a backend: what it does with each batch, or what goes wrong.

An input is a number, three tokens long. Its vector is that number, twice; it has as many token vectors, and a
sparse vector with one entry, at that index.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from infinity_emb.items import Encoded, Float32Array, ForwardSpec, SparseVector
from infinity_emb.types import OutputName

OnLaunch = Callable[[list[int]], object]
OnResult = Callable[[list[int], Float32Array], Any]


def unchanged(numbers: list[int], vectors: Float32Array) -> Float32Array:
    return vectors


@dataclass
class ScriptedBackend:
    """Compute at once, unless a callback does something else with the numbers of a batch.

    on_full_launch, on_full_result: for batches in full precision; None for the same as the others.
    launched, launched_full: the numbers of each batch.
    """

    num_in_flight: int = 1
    shares_device: bool = False
    on_prepare: Callable[[], object] = lambda: None
    on_launch: OnLaunch = lambda numbers: None
    on_result: OnResult = unchanged
    on_full_launch: OnLaunch | None = None
    on_full_result: OnResult | None = None
    on_outputs: Callable[[dict[OutputName, Any]], Any] = lambda outputs: outputs
    launched: list[list[int]] = field(default_factory=list)
    launched_full: list[list[int]] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)
    num_freed: int = 0

    def prepare_thread(self) -> None:
        self.on_prepare()

    def free_memory(self) -> None:
        self.num_freed += 1

    def launch(self, batch: Sequence[Encoded], *, full_precision: bool = False) -> ScriptedBatch:
        numbers = [int(encoded.token_ids[0]) for encoded in batch]
        self.threads.add(threading.get_ident())
        (self.launched_full if full_precision else self.launched).append(numbers)
        on_launch, on_result = self.on_launch, self.on_result
        if full_precision:
            on_launch = self.on_full_launch or on_launch
            on_result = self.on_full_result or on_result
        on_launch(numbers)
        names = {name for encoded in batch for name in encoded.spec.outputs}
        return ScriptedBatch(numbers, names, on_result, self.on_outputs)


@dataclass
class ScriptedBatch:
    numbers: list[int]
    names: set[OutputName]
    on_result: OnResult
    on_outputs: Callable[[dict[OutputName, Any]], Any]

    def result(self) -> Any:
        vectors = np.repeat(np.array(self.numbers, dtype=np.float32)[:, None], 2, axis=1)  # (B, 2)
        outputs: dict[OutputName, Any] = {
            "dense": self.on_result(self.numbers, vectors),
            "multivector": [np.full((number, 2), number, dtype=np.float32) for number in self.numbers],
            "sparse": [make_sparse_row(number) for number in self.numbers],
        }
        return self.on_outputs({name: outputs[name] for name in self.names})


def make_sparse_row(number: int) -> SparseVector:
    return SparseVector(np.array([number], dtype=np.int32), np.array([number], dtype=np.float32))


def make_ids(number: int) -> npt.NDArray[np.int32]:
    return np.full(3, number, dtype=np.int32)


def encode_number(number: int, *outputs: OutputName, position: int = 0) -> Encoded:
    """Encode a number as an input of three tokens that asks for these outputs, or for its vector."""
    return Encoded(make_ids(number), spec=ForwardSpec(outputs=outputs or ("dense",)), position=position)


def fail_on(*bad: int, error: BaseException | None = None) -> Any:
    """Raise at launch or at the result of a batch that contains one of these numbers."""

    def check(numbers: list[int], vectors: Float32Array | None = None) -> Any:
        if set(bad) & set(numbers):
            raise error or RuntimeError("injected failure")
        return vectors

    return check


def crash_on(*bad: int) -> Any:
    """Crash the worker thread on a batch that contains one of these numbers."""
    return fail_on(*bad, error=SystemExit("injected crash"))


def drop_last_vector_on(*bad: int) -> OnResult:
    """Return one vector too few for a batch that contains one of these numbers."""
    return lambda numbers, vectors: vectors[:-1] if set(bad) & set(numbers) else vectors


def nan_on(*bad: int, value: float = np.nan) -> OnResult:
    """Replace the vectors of these numbers by a value that is not finite."""
    return lambda numbers, vectors: np.where(np.isin(vectors, bad), np.float32(value), vectors)


# Callbacks that make these numbers fail, by what goes wrong.
FAULTS: dict[str, Callable[..., dict[str, Any]]] = {
    "launch": lambda *bad: {"on_launch": fail_on(*bad)},
    "result": lambda *bad: {"on_result": fail_on(*bad)},
    "number of vectors": lambda *bad: {"on_result": drop_last_vector_on(*bad)},
    "NaN": lambda *bad: {"on_result": nan_on(*bad)},
}
