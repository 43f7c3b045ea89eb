"""Compare the outputs of a faster way to compute a model with those of the current way, at start."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import TypeAlias

from torch import nn

from infinity_emb.backends.accuracy import compare, find_bound
from infinity_emb.backends.closeness import Outputs, Scores, find_objection
from infinity_emb.backends.out_of_memory import is_out_of_memory
from infinity_emb.backends.torch.backend import TorchBackend
from infinity_emb.backends.torch.layout_check import find_dtype_name
from infinity_emb.backends.torch.module_classes import Classes, set_classes
from infinity_emb.backends.torch.st_introspection import find_transformers
from infinity_emb.errors import one_line
from infinity_emb.items import Encoded, Float32Array, SparseVector

Score: TypeAlias = Callable[[Outputs], Scores]
Find: TypeAlias = Callable[[nn.Module], Classes]
Entries: TypeAlias = list[Float32Array | SparseVector]

logger = logging.getLogger("infinity_emb")
_HALF = ("float16", "bfloat16")


class EagerOutputs:
    """Outputs of the current way, in batches of different sizes, whose differences are its noise.

    items: of one spec.
    score: outputs → the scores by which clients decide.
    """

    def __init__(self, backend: TorchBackend, items: Sequence[Encoded], score: Score) -> None:
        self._backend = backend
        self._items = list(items)
        self._score = score
        self._dtype = find_dtype_name(backend.torch_model)
        # One text per batch, a few, and all together.
        self._batchings = [compute_entries(backend, items, size) for size in (1, 3, len(items))]

    def find_objection(self, found: Entries) -> str:
        """Return why a faster way must not replace the current one; "" if it may.

        found: its outputs of the first items. In float32 they may only differ by rounding. In half precision
        they may differ more than by the noise of batches if they are at least as close to float32.
        """
        batchings = [each[: len(found)] for each in self._batchings]
        new, old = self._score(found), [self._score(each) for each in batchings]
        if self._dtype == "float32":
            are_scores = self._backend.torch_model.dense_name == "scores"
            accuracy = compare(found, batchings[0], are_scores=are_scores)
            violation = find_bound("batching", self._dtype).find_violation(accuracy)
            return violation or find_objection(new, old)
        objection = find_objection(new, old)
        if not objection or self._dtype not in _HALF or self._reference is None:
            return objection
        return find_objection(new, old, self._score(self._reference[: len(found)]))

    @functools.cached_property
    def _reference(self) -> Entries | None:
        """Outputs in float32; None if the device has no memory for a copy of the model."""
        try:
            return compute_entries(self._backend, self._items, len(self._items), full_precision=True)
        except (RuntimeError, MemoryError) as exc:  # torch's out-of-memory error is a RuntimeError
            if not is_out_of_memory(exc):
                raise
            return None
        finally:
            self._backend.free_memory()


def replace_classes(
    backend: TorchBackend, samples: Sequence[Sequence[Encoded]], score: Score, *, find: Find, refusal: str
) -> bool:
    """Replace classes that `find` names unless that changes a decision; return whether any are replaced.

    samples: texts for each spec that texts have.
    """
    networks = [transformer.model for transformer in find_transformers(backend.torch_model.model)]
    classes = {module: each for network in networks for module, each in find(network).items()}
    if not classes or not samples:
        return False
    backend.prepare_thread()
    before = [EagerOutputs(backend, items, score) for items in samples]
    replaced = set_classes(classes)
    try:
        founds = (compute_entries(backend, items, len(items)) for items in samples)
        objections = [eager.find_objection(found) for eager, found in zip(before, founds, strict=True)]
    except (RuntimeError, AttributeError, TypeError) as exc:  # a kernel that this device or torch lacks
        objections = [f"cannot be computed: {one_line(exc, 200)}"]
    if any(objections):
        set_classes(replaced)
        logger.warning("%s, because the output %s", refusal, next(filter(None, objections)))
    return not any(objections)


def compute_entries(
    backend: TorchBackend, items: Sequence[Encoded], batch_size: int, *, full_precision: bool = False
) -> Entries:
    """Compute items of one spec in batches and return the first output of each."""
    name = items[0].spec.outputs[0]
    entries: Entries = []
    for start in range(0, len(items), batch_size):
        batch = items[start : start + batch_size]
        entries += list(backend.launch(batch, full_precision=full_precision).result()[name])
    return entries
