"""`--engine auto`: load a model with each engine that is installed, measure, and keep the fastest.

An engine is out that refuses the model, or whose answers are too far from torch's in float32. Two models are
in memory at once, the best so far and its challenger. Knows nothing of what an engine does, nor of requests.
"""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

from infinity_emb.agreement import Bound
from infinity_emb.backends import registry
from infinity_emb.backends.auto_choice import (
    Agreement,
    Trial,
    bound_of,
    choose,
    complaint,
    reason_of,
    rows_of,
)
from infinity_emb.backends.auto_measure import Answer, Contender, agreement_of, speed_ratio, takes_texts
from infinity_emb.backends.auto_memory import Decision, decision_file
from infinity_emb.backends.base import LoadedModel
from infinity_emb.backends.torch_device import device_names, is_out_of_memory
from infinity_emb.config import EngineArgs
from infinity_emb.errors import ModelTooLarge, StartupError
from infinity_emb.model_files import ModelFiles
from infinity_emb.model_kind import lacks_weights
from infinity_emb.primitives import Device, Dtype, InferenceEngine

logger = logging.getLogger("infinity_emb")

_MAX_REASON_CHARS = 240


def load_model(args: EngineArgs, files: ModelFiles) -> LoadedModel:
    """Load with the engine that an earlier start has chosen, else with the one that is the fastest now.

    Raises StartupError where no engine can serve the model, ModelTooLarge where one could with more memory,
    and what torch raises where it is alone.
    """
    engines = registry.installed_engines()
    if args.graph_file:  # which says who is wanted
        engines = {each: library for each, library in engines.items() if each in registry.READ_GRAPHS}
        if not engines:
            raise StartupError("--graph-file needs infinity-emb[onnx] or infinity-emb[openvino]; install one")
    if lacks_weights(files.path):
        return _load_a_graph(args, files, list(engines))
    if list(engines) == [InferenceEngine.torch]:
        return _load(args, files, InferenceEngine.torch, "no other engine is installed")
    memory = decision_file(args, files, list(engines.values()), device_names())
    remembered = memory.load()
    if remembered is not None:
        try:
            model = _load(args, files, remembered.engine, remembered.reason)
        except ModelTooLarge:  # measuring takes the memory of two models, and would forget the choice
            raise
        except StartupError as exc:
            logger.warning(
                "engine %s was chosen before and fails now, measuring anew: %s", remembered.engine, exc
            )
        else:
            logger.info("engine %s, %s; remembered in %s", remembered.engine, remembered.reason, memory.path)
            return model
    logger.info("measuring engines for %s, once: %s", args.model_name_or_path, ", ".join(engines))
    contest = _Contest(args, files)
    model, decision = contest.hold(list(engines))
    memory.save(decision)
    return model


def _load_a_graph(args: EngineArgs, files: ModelFiles, engines: list[InferenceEngine]) -> LoadedModel:
    """Where there are no weights, nothing tells which engine is right: the first that can serve the model."""
    refusals = []
    lacks_memory = False
    for engine in sorted(engines, key=lambda each: each is not InferenceEngine.optimum):
        try:
            return _load(args, files, engine, "the repository has no torch weights to compare engines by")
        except Exception as exc:  # whatever its library raises: the others are not out for it
            logger.debug("engine %s is out", engine, exc_info=True)
            refusals.append(f"{engine}: {_in_short(exc)}")
            lacks_memory |= _lacks_memory(exc)
    if lacks_memory:
        raise _too_large(args, refusals)
    raise StartupError(
        f"no engine can serve model {args.model_name_or_path!r}, which has no torch weights:"
        f" {'; '.join(refusals)}; name a file by --graph-file, and install infinity-emb[onnx] or"
        " infinity-emb[openvino] where they are not"
    )


def _too_large(args: EngineArgs, refusals: Sequence[str]) -> ModelTooLarge:
    """What is raised where no engine serves the model, and one of them could with more memory."""
    return ModelTooLarge(
        f"there is no memory for model {args.model_name_or_path!r}: {'; '.join(refusals)};"
        " unload another one, or choose a smaller --dtype"
    )


def _lacks_memory(exc: Exception) -> bool:
    """Whether an engine is out for what unloading another model may mend, while it loads or computes."""
    return isinstance(exc, ModelTooLarge) or is_out_of_memory(exc)


def _load(args: EngineArgs, files: ModelFiles, engine: InferenceEngine, reason: str) -> LoadedModel:
    model = registry.load_from(replace(args, engine=engine), files)
    return replace(model, info=replace(model.info, engine_reason=reason))


class _Contest:
    """The engines in turn: each is measured beside the best so far, and one of the two is freed."""

    def __init__(self, args: EngineArgs, files: ModelFiles) -> None:
        self._args = args
        self._files = files
        self._trials: list[Trial] = []
        self._best: Contender | None = None  # of the trial that is chosen so far
        self._expected: list[list[Answer]] | None = None  # torch's answers in float32
        self._usual_dtype = ""  # what torch takes where none is asked for

    def hold(self, engines: Sequence[InferenceEngine]) -> tuple[LoadedModel, Decision]:
        """The winner's model. Raises StartupError where every engine is out, ModelTooLarge for its memory."""
        for engine in engines:
            self._try(engine)
        table = rows_of(self._trials)
        for row in table:
            logger.info("%s", row)
        chosen = choose(self._trials)
        if self._best is None or chosen is None:
            if any(trial.lacks_memory for trial in self._trials):
                raise _too_large(self._args, table)
            raise StartupError(
                f"no engine can serve model {self._args.model_name_or_path!r} as asked: {'; '.join(table)};"
                " name one by --engine, to have it served or hear more"
            )
        self._best.close()
        model, reason = self._best.model, reason_of(self._trials)
        model = replace(model, info=replace(model.info, engine_reason=reason))
        return model, Decision(chosen.engine, reason, tuple(table))

    def _try(self, engine: InferenceEngine) -> None:
        contender: Contender | None = None
        try:
            contender = Contender(self._load(engine))
            trial = self._measure(engine, contender)
        except Exception as exc:  # whatever its library raises: the others are not out for it
            logger.debug("engine %s is out", engine, exc_info=True)
            trial = Trial(engine=engine, failure=_in_short(exc), lacks_memory=_lacks_memory(exc))
        self._trials.append(trial)
        if choose(self._trials) is trial:
            self._best, contender = contender, self._best
        if contender is None:
            gc.collect()  # what a failed load leaves
        else:
            contender.close()
            free_memory = contender.model.free_memory
            del contender
            _free(free_memory)

    def _load(self, engine: InferenceEngine, **changes: object) -> LoadedModel:
        return registry.load_from(replace(self._args, engine=engine, **changes), self._files)  # type: ignore[arg-type]

    def _measure(self, engine: InferenceEngine, contender: Contender) -> Trial:
        info = contender.model.info
        trial = Trial(engine=engine, dtype=info.dtype)
        if engine is InferenceEngine.torch:
            self._usual_dtype = info.dtype
        if not takes_texts(info):
            failure = "the model takes no texts to be measured by"
            return trial if self._best is None else replace(trial, failure=failure)
        if engine is InferenceEngine.torch and info.dtype == Dtype.float32:
            self._expected = contender.answers()
            return trial
        agreement = self._agreement(contender)
        bound = bound_of(self._args.dtype, self._usual_dtype or info.dtype)
        if self._args.graph_file:  # whose numbers are wanted, if they are numbers
            bound = Bound(cosine=-1, difference=sys.float_info.max)
        trial = replace(trial, agreement=agreement, failure=complaint(agreement, bound))
        best = choose(self._trials)
        if trial.failure or self._best is None or best is None:
            return trial
        return replace(trial, speed=best.speed * speed_ratio(contender, self._best))

    def _agreement(self, contender: Contender) -> Agreement:
        if self._expected is None:
            self._expected = self._answers_in_float32()
        return agreement_of(contender.answers(), self._expected, contender.model.info.kind)

    def _answers_in_float32(self) -> list[list[Answer]]:
        """Of torch, loaded for this alone; on the CPU where the device has no room, or is none of torch's."""
        try:
            return self._answers_of_torch(device_id=self._args.device_id[:1])
        except StartupError as exc:
            logger.info("comparing with torch on the CPU: %s", exc)
        return self._answers_of_torch(device=Device.cpu, device_id=())

    def _answers_of_torch(self, **changes: object) -> list[list[Answer]]:
        model = self._load(InferenceEngine.torch, dtype=Dtype.float32, model_warmup=False, **changes)
        reference, free_memory = Contender(model), model.free_memory
        try:
            return reference.answers()
        finally:
            reference.close()
            del model, reference
            _free(free_memory)


def _free(free_memory: Callable[[], None]) -> None:
    """What was let go: models may refer to themselves in circles."""
    gc.collect()
    free_memory()


def _in_short(exc: Exception) -> str:
    """What was wrong, without the way out, which is for who asked for this engine."""
    reason = str(exc) if isinstance(exc, StartupError) else f"{type(exc).__name__}: {exc}"
    return " ".join(reason.split(";")[0].split())[:_MAX_REASON_CHARS] or type(exc).__name__
