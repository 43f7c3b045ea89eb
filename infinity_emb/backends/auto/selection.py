"""Try engines one after the other on one model."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable
from dataclasses import replace

from infinity_emb.backends import registry
from infinity_emb.backends.accuracy import Accuracy, Bound, compare, find_bound
from infinity_emb.backends.auto.candidate import Candidate, can_measure, compare_speed
from infinity_emb.backends.auto.measurement import Measurement, select_fastest
from infinity_emb.backends.base import LoadedModel
from infinity_emb.backends.closeness import Scores, find_objection
from infinity_emb.backends.out_of_memory import is_out_of_memory
from infinity_emb.config.model_options import LoadOptions
from infinity_emb.errors import ModelTooLarge, StartupError
from infinity_emb.hub.resolve import ModelFiles
from infinity_emb.items import Float32Array, SparseVector
from infinity_emb.types import Device, Dtype, InferenceEngine, ModelKind

logger = logging.getLogger("infinity_emb")

_MAX_REASON_CHARS = 240
# A graph that the user names may have any outputs that are finite.
_FINITE = Bound(max_difference=sys.float_info.max, max_score_difference=sys.float_info.max)


class EngineSelection:
    """Measure engines in turn; only the model of the best one so far is kept."""

    def __init__(self, args: LoadOptions, files: ModelFiles) -> None:
        self.measurements: list[Measurement] = []
        self._args = args
        self._files = files
        self._best: Candidate | None = None
        self._expected: list[Float32Array | SparseVector] | None = None  # torch's outputs in float32
        self._torch_scores: list[Scores] = []  # in the dtype that torch serves, in batches and alone
        self._default_dtype = ""  # that torch chooses if the user names none

    def try_engine(self, engine: InferenceEngine) -> None:
        """Load, compare and measure one engine; then free its model, or that of the former best one."""
        candidate: Candidate | None = None
        try:
            candidate = Candidate(self._load(engine))
            measurement = self._measure(engine, candidate)
        except Exception as exc:  # noqa: BLE001 - whatever its library raises: other engines may work
            measurement = describe_failure(engine, exc)
        self.measurements.append(measurement)
        if select_fastest(self.measurements) is measurement:
            self._best, candidate = candidate, self._best
        if candidate is None:
            gc.collect()  # frees what a failed load leaves
        else:
            candidate.close()
            free_memory = candidate.model.free_memory
            del candidate
            _collect_garbage(free_memory)

    def take_fastest(self) -> tuple[InferenceEngine, LoadedModel] | None:
        """Return the fastest engine and its model, or None if every engine is rejected."""
        fastest = select_fastest(self.measurements)
        if self._best is None or fastest is None:
            return None
        self._best.close()
        return fastest.engine, self._best.model

    def _load(self, engine: InferenceEngine, **changes: object) -> LoadedModel:
        return registry.load_from(replace(self._args, engine=engine, **changes), self._files)  # type: ignore[arg-type]

    def _measure(self, engine: InferenceEngine, candidate: Candidate) -> Measurement:
        info = candidate.model.info
        measurement = Measurement(engine=engine, dtype=info.dtype)
        if engine is InferenceEngine.torch:
            self._default_dtype = info.dtype
        if not can_measure(info):
            reason = "the model takes no texts to measure with"
            return measurement if self._best is None else replace(measurement, rejection_reason=reason)
        outputs = candidate.compute_outputs()
        if engine is InferenceEngine.torch:
            self._torch_scores = [candidate.make_scores(outputs)]
            if info.dtype == Dtype.float32:
                self._expected = outputs
                return measurement
            alone = candidate.compute_outputs(are_alone=True)
            self._torch_scores.append(candidate.make_scores(alone))
        accuracy, objection = self._compare(engine, candidate, outputs)
        measurement = replace(measurement, accuracy=accuracy, rejection_reason=objection)
        best = select_fastest(self.measurements)
        if measurement.rejection_reason or self._best is None or best is None:
            return measurement
        return replace(measurement, speed=best.speed * compare_speed(candidate, self._best))

    def _compare(
        self, engine: InferenceEngine, candidate: Candidate, outputs: list[Float32Array | SparseVector]
    ) -> tuple[Accuracy, str]:
        """Compare outputs with torch's in float32; return the accuracy, and why the engine is rejected.

        Torch itself only has to meet the bound of its dtype; an engine that would replace it must also pass
        `find_objection`.
        """
        if self._expected is None:
            self._expected = self._compute_expected()
        info = candidate.model.info
        are_scores = info.kind in (ModelKind.reranker, ModelKind.classifier)
        accuracy = compare(outputs, self._expected, are_scores=are_scores)
        if self._args.graph_file:
            return accuracy, _FINITE.find_violation(accuracy)
        bound = find_engine_bound(self._args.dtype, self._default_dtype or info.dtype)
        violation = bound.find_violation(accuracy)
        if violation or engine is InferenceEngine.torch or not self._torch_scores:
            return accuracy, violation
        new, reference = candidate.make_scores(outputs), candidate.make_scores(self._expected)
        return accuracy, find_objection(new, self._torch_scores, reference)

    def _compute_expected(self) -> list[Float32Array | SparseVector]:
        """Compute with torch in float32; on the CPU if the device lacks memory or is not torch's."""
        try:
            return self._compute_with_torch(device_id=self._args.device_id[:1])
        except StartupError as exc:
            logger.info("comparing with torch on the CPU: %s", exc)
        return self._compute_with_torch(device=Device.cpu, device_id=())

    def _compute_with_torch(self, **changes: object) -> list[Float32Array | SparseVector]:
        model = self._load(InferenceEngine.torch, dtype=Dtype.float32, model_warmup=False, **changes)
        reference, free_memory = Candidate(model), model.free_memory
        try:
            return reference.compute_outputs()
        finally:
            reference.close()
            del model, reference
            _collect_garbage(free_memory)


def find_engine_bound(named: Dtype, default_dtype: str) -> Bound:
    """Return the bound of the dtype that the user names, else of the one that torch takes."""
    return find_bound("engine", default_dtype if named is Dtype.auto else named.value)


def describe_failure(engine: InferenceEngine, exc: Exception) -> Measurement:
    """Return the rejection of an engine; its reason omits the remedy, which applies to this engine only."""
    logger.debug("engine %s is rejected", engine, exc_info=exc)
    reason = str(exc) if isinstance(exc, StartupError) else f"{type(exc).__name__}: {exc}"
    return Measurement(
        engine=engine,
        rejection_reason=" ".join(reason.split(";")[0].split())[:_MAX_REASON_CHARS] or type(exc).__name__,
        lacks_memory=isinstance(exc, ModelTooLarge) or is_out_of_memory(exc),
    )


def _collect_garbage(free_memory: Callable[[], None]) -> None:
    """Free the memory of released models, which may be part of reference cycles."""
    gc.collect()
    free_memory()
