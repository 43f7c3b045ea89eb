"""Engine name → module that loads a model for it; each foreign library is imported only when asked for.

A static model goes with `torch` to whoever asks for it and needs none, so its files are looked at first.
Knows nothing else of what the modules do. A module here has `load_model(args, files) -> LoadedModel`.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from dataclasses import replace
from typing import cast

from infinity_emb.backends.base import LoadedModel, Reference
from infinity_emb.config import EngineArgs
from infinity_emb.errors import ModelTooLarge, StartupError
from infinity_emb.model_files import ModelFiles, resolve_model_files
from infinity_emb.model_kind import lacks_weights
from infinity_emb.primitives import InferenceEngine, ModelKind

logger = logging.getLogger("infinity_emb")

# And the extra that brings what the module imports.
_MODULES = {
    InferenceEngine.torch: ("infinity_emb.backends.torch_loading", "torch"),
    InferenceEngine.optimum: ("infinity_emb.backends.onnx_backend", "optimum"),
    InferenceEngine.ctranslate2: ("infinity_emb.backends.ct2_backend", "ct2"),
    InferenceEngine.openvino: ("infinity_emb.backends.openvino_backend", "openvino"),
    InferenceEngine.debugengine: ("infinity_emb.backends.fake", None),
    InferenceEngine.auto: ("infinity_emb.backends.auto", "torch"),
}
# The library of an engine that has another name.
_LIBRARIES = {InferenceEngine.optimum: "onnxruntime"}
# Those that need no torch weights where the repository has a graph.
READ_GRAPHS = (InferenceEngine.optimum, InferenceEngine.openvino)
_STATIC_MODULE = "infinity_emb.backends.static"


def load_model(args: EngineArgs) -> LoadedModel:
    """Load a model with the engine that `args` names.

    Raises StartupError for an engine that this version does not have or whose extra is not installed, for a
    model that is nowhere to be found, and for everything that the engine refuses. Raises ModelTooLarge where
    there is no memory for it.
    """
    if args.engine not in _MODULES:
        available = ", ".join(_MODULES)
        raise StartupError(f"--engine {args.engine} is not available in this version; use one of {available}")
    _, extra = _MODULES[args.engine]
    if extra is None:
        return load_from(args, None)
    reads_graphs = args.engine in (*READ_GRAPHS, InferenceEngine.auto)
    if args.graph_file and not reads_graphs:
        logger.warning("--graph-file %s has no effect with --engine %s", args.graph_file, args.engine)
    return load_from(args, _find_files(args, graph_suffices=reads_graphs))


def load_from(args: EngineArgs, files: ModelFiles | None) -> LoadedModel:
    """The same, where the files are found already.

    files: None for an engine that reads none.
    """
    module_name, extra = _MODULES[args.engine]
    try:
        module = importlib.import_module(_STATIC_MODULE if _is_static(args, files) else module_name)
    except ImportError as exc:
        raise StartupError(
            f"--engine {args.engine} needs a package that is not installed ({exc});"
            f" install it with: pip install 'infinity-emb[{extra}]'"
        ) from exc
    try:
        model = cast(LoadedModel, module.load_model(args, files))
    except MemoryError as exc:
        raise ModelTooLarge(
            f"there is no memory for model {args.model_name_or_path!r}; unload another one first"
        ) from exc
    if model.info.engine:  # chosen by measurement
        return model
    # A static table is computed without any library, whatever is asked for.
    name = InferenceEngine.torch if args.engine is InferenceEngine.auto else args.engine
    return replace(model, info=replace(model.info, engine=str(name)))


def installed_engines() -> dict[InferenceEngine, str]:
    """The engines whose library is installed, each with that library's name; torch first.

    Nothing is imported to find out.
    """
    candidates = [
        engine
        for engine, (_, extra) in _MODULES.items()
        if extra is not None and engine is not InferenceEngine.auto
    ]
    libraries = {engine: _LIBRARIES.get(engine, engine.value) for engine in candidates}
    return {
        engine: libraries[engine]
        for engine in sorted(candidates, key=lambda each: each is not InferenceEngine.torch)
        if importlib.util.find_spec(libraries[engine]) is not None
    }


def load_reference(args: EngineArgs) -> Reference:
    """sentence-transformers' own answers for the model that `args` names, whatever its engine.

    Raises StartupError where sentence-transformers is not installed or cannot load it.
    """
    try:
        module = importlib.import_module("infinity_emb.backends.torch_reference")
    except ImportError as exc:
        raise StartupError(
            f"a comparison with sentence-transformers needs it ({exc});"
            " install it with: pip install 'infinity-emb[torch]'"
        ) from exc
    files = _find_files(args, graph_suffices=True)
    if lacks_weights(files.path):
        raise StartupError(
            f"model {args.model_name_or_path!r} has no torch weights, so there is nothing to compare it with"
        )
    return cast(Reference, module.load_reference(args, files))


def _find_files(args: EngineArgs, *, graph_suffices: bool = False) -> ModelFiles:
    return resolve_model_files(args.model_name_or_path, revision=args.revision, graph_suffices=graph_suffices)


def _is_static(args: EngineArgs, files: ModelFiles | None) -> bool:
    if files is None or args.model_kind not in (ModelKind.auto, ModelKind.embedder):
        return False
    return bool(importlib.import_module(_STATIC_MODULE).is_static(files.path))
