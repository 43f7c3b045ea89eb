"""Load a model with each installed engine, measure, and keep the fastest.

An engine is rejected if it refuses the model, or if its outputs are too far from torch's in float32. At most
two models are in memory at once: the best so far and its challenger.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from infinity_emb.backends import registry
from infinity_emb.backends.auto.decision import Decision, find_decision_file, load_decision, save_decision
from infinity_emb.backends.auto.measurement import Measurement, format_table, summarize
from infinity_emb.backends.auto.selection import EngineSelection, describe_failure
from infinity_emb.backends.base import LoadedModel
from infinity_emb.backends.torch.device import list_device_names
from infinity_emb.config.model_options import LoadOptions
from infinity_emb.errors import ModelTooLarge, StartupError
from infinity_emb.hub.detect import lacks_weights
from infinity_emb.hub.resolve import ModelFiles
from infinity_emb.storage.keyed_file import KeyedFile
from infinity_emb.types import InferenceEngine

logger = logging.getLogger("infinity_emb")


def load_model(args: LoadOptions, files: ModelFiles) -> LoadedModel:
    """Load with the engine that an earlier start has selected, else with the one that is fastest now.

    Raises StartupError if no engine can serve the model, ModelTooLarge if one could with more memory, and
    what torch raises if it is the only engine.
    """
    libraries = registry.installed_engines()
    if args.graph_file:
        libraries = {engine: libraries[engine] for engine in libraries if engine in registry.READ_GRAPHS}
        if not libraries:
            raise StartupError("--graph-file needs infinity-emb[onnx] or infinity-emb[openvino]; install one")
    engines = list(libraries)
    if lacks_weights(files.path):
        return _load_graph(args, files, engines)
    if engines == [InferenceEngine.torch]:
        return _load(args, files, InferenceEngine.torch, "no other engine is installed")
    file = find_decision_file(args, files, list(libraries.values()), list_device_names())
    return _load_remembered(args, files, file) or _load_fastest(args, files, engines, file)


def _load(args: LoadOptions, files: ModelFiles, engine: InferenceEngine, reason: str) -> LoadedModel:
    model = registry.load_from(replace(args, engine=engine), files)
    return replace(model, info=replace(model.info, engine_reason=reason))


def _load_graph(args: LoadOptions, files: ModelFiles, engines: Sequence[InferenceEngine]) -> LoadedModel:
    """Load with the first engine that can: without torch weights there are no expected outputs."""
    rejected = []
    for engine in sorted(engines, key=lambda each: each is not InferenceEngine.optimum):
        try:
            return _load(args, files, engine, "the repository has no torch weights to compare engines with")
        except Exception as exc:  # noqa: BLE001 - whatever its library raises: another engine may work
            rejected.append(describe_failure(engine, exc))
    raise _refuse(
        args,
        rejected,
        "the repository has no torch weights: name a file with --graph-file, and install infinity-emb[onnx]"
        " or infinity-emb[openvino]",
    )


def _load_remembered(args: LoadOptions, files: ModelFiles, file: KeyedFile) -> LoadedModel | None:
    """Load with the engine that an earlier start has selected; None if there is none, or it fails now.

    Raises ModelTooLarge: measuring again would need the memory of two models.
    """
    decision = load_decision(file)
    if decision is None:
        return None
    try:
        model = _load(args, files, decision.engine, decision.reason)
    except ModelTooLarge:
        raise
    except StartupError as exc:
        logger.warning(
            "engine %s was selected before and fails now; measuring again: %s", decision.engine, exc
        )
        return None
    logger.info("engine %s, %s; remembered in %s", decision.engine, decision.reason, file.path)
    return model


def _load_fastest(
    args: LoadOptions, files: ModelFiles, engines: Sequence[InferenceEngine], file: KeyedFile
) -> LoadedModel:
    logger.info("measuring engines for %s (one-time): %s", args.model_name_or_path, ", ".join(engines))
    selection = EngineSelection(args, files)
    for engine in engines:
        selection.try_engine(engine)
    table = format_table(selection.measurements)
    for line in table:
        logger.info("%s", line)
    fastest = selection.take_fastest()
    if fastest is None:
        raise _refuse(args, selection.measurements, "select one with --engine for the full error message")
    engine, model = fastest
    reason = summarize(selection.measurements)
    save_decision(file, Decision(engine, reason, tuple(table)))
    return replace(model, info=replace(model.info, engine_reason=reason))


def _refuse(args: LoadOptions, rejected: Sequence[Measurement], remedy: str) -> StartupError:
    """Return the error for a model that no engine serves."""
    reasons = "; ".join(map(str, rejected))
    if any(each.lacks_memory for each in rejected):
        return ModelTooLarge(
            f"not enough memory for model {args.model_name_or_path!r}: {reasons};"
            " unload another model, or choose a smaller --dtype"
        )
    return StartupError(f"no engine can serve model {args.model_name_or_path!r}: {reasons}; {remedy}")
