"""Load a model with the module of its engine; a library is imported only when its engine is used.

A static model needs no library, whichever engine is requested, so its files are read first.
Each engine's module has `load_model(args, files) -> LoadedModel`.
"""

from __future__ import annotations

import functools
import importlib
import logging
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, cast

from infinity_emb.backends.base import LoadedModel, Reference
from infinity_emb.backends.load_trial import load_in_trial, no_memory
from infinity_emb.backends.packages import check_libraries, check_model_packages, is_installed
from infinity_emb.backends.startup_check import check_outputs_differ
from infinity_emb.backends.vector_length import measure_vector_length
from infinity_emb.concurrency import call_within
from infinity_emb.config.model_options import LoadOptions
from infinity_emb.errors import StartupError, one_line
from infinity_emb.hub.contents_check import check_contents
from infinity_emb.hub.detect import lacks_weights
from infinity_emb.hub.resolve import ModelFiles, resolve_model_files
from infinity_emb.storage.load_progress import report_stage
from infinity_emb.types import InferenceEngine, ModelKind, PoolingMethod

logger = logging.getLogger("infinity_emb")


class _Engine(NamedTuple):
    """The module of an engine and what it needs.

    extra: of this package; it installs what the module imports.
    library: the one that computes.
    """

    module: str
    extra: str | None
    library: str | None = None


_ENGINES = {
    InferenceEngine.torch: _Engine("infinity_emb.backends.torch.load", "torch", "torch"),
    InferenceEngine.optimum: _Engine("infinity_emb.backends.onnx.load", "optimum", "onnxruntime"),
    InferenceEngine.ctranslate2: _Engine("infinity_emb.backends.ctranslate2.load", "ct2", "ctranslate2"),
    InferenceEngine.openvino: _Engine("infinity_emb.backends.openvino.load", "openvino", "openvino"),
    InferenceEngine.debugengine: _Engine("infinity_emb.backends.fake", None),
    InferenceEngine.auto: _Engine("infinity_emb.backends.auto.load", "torch"),
}
_TOKENIZER_LIBRARY = "tokenizers"  # needed for static models, too
_NETWORK_LIBRARIES = ("torch", "transformers", "sentence_transformers")  # needed for all other models
# Engines that need no torch weights if the repository has a graph.
READ_GRAPHS = (InferenceEngine.optimum, InferenceEngine.openvino)
_STATIC_MODULE = "infinity_emb.backends.static.load"


def use_one_thread() -> None:
    """Let libraries compute on the calling thread: a forked process has none of its parent's threads."""
    if "torch" in sys.modules:
        importlib.import_module("infinity_emb.backends.torch.cpu_threads").use_one_thread()


def load_model(args: LoadOptions) -> LoadedModel:
    """Load a model with the engine that `args` names.

    Raises StartupError for an engine that this version does not have or whose extra is not installed, for a
    model that cannot be found, and for whatever the engine refuses. Raises ModelTooLarge if there is not
    enough memory.
    """
    if args.engine not in _ENGINES:
        available = ", ".join(_ENGINES)
        raise StartupError(f"--engine {args.engine} is not available in this version; use one of {available}")
    extra = _ENGINES[args.engine].extra
    if extra is None:
        return _load_after_trial(args, None)
    check_libraries(args.engine, [_TOKENIZER_LIBRARY], extra)
    reads_graphs = args.engine in (*READ_GRAPHS, InferenceEngine.auto)
    if args.graph_file and not reads_graphs:
        logger.warning("--graph-file %s has no effect with --engine %s", args.graph_file, args.engine)
    return _load_after_trial(args, _find_files(args, graph_suffices=reads_graphs))


def _load_after_trial(args: LoadOptions, files: ModelFiles | None) -> LoadedModel:
    if args.needs_trial:
        load_in_trial(args, files)
    return load_from(args, files)


def load_from(args: LoadOptions, files: ModelFiles | None) -> LoadedModel:
    """Load a model from files that are already resolved.

    files: None for an engine that reads none.
    """
    if files is not None:
        check_contents(files.path, is_pooling_given=args.pooling_method is not PoolingMethod.auto)
        _check_packages(args, files.path)
    report_stage("importing libraries")
    module = _import_engine(args, files)
    name = args.model_name_or_path
    try:
        model = call_within(args.load_timeout_s, lambda: _load_and_check(module, args, files))
    except TimeoutError as exc:
        raise StartupError(
            f"model {name!r} was not loaded in time: {exc}; raise --load-timeout-s if its files are right"
        ) from exc
    except MemoryError as exc:
        raise no_memory(name) from exc
    except StartupError:
        raise
    except Exception as exc:  # a model's files can make the libraries raise anything
        logger.debug("cannot load %s", name, exc_info=True)
        raise StartupError(
            f"model {name!r} could not be loaded: {type(exc).__name__}: {one_line(exc, 400)}"
        ) from exc
    if model.info.engine:  # chosen by measurement
        return model
    # With `auto`, the model is static here, and no engine was measured: numpy computes it.
    engine = InferenceEngine.torch if args.engine is InferenceEngine.auto else args.engine
    return replace(model, info=replace(model.info, engine=str(engine)))


def _import_engine(args: LoadOptions, files: ModelFiles | None) -> ModuleType:
    engine = _ENGINES[args.engine]
    is_static = files is not None and _is_static(args, files.path)
    try:
        return importlib.import_module(_STATIC_MODULE if is_static else engine.module)
    except ImportError as exc:
        raise StartupError(
            f"--engine {args.engine} needs a package that cannot be imported ({exc});"
            f" install it with: pip install 'infinity-emb[{engine.extra}]'"
        ) from exc


def _check_packages(args: LoadOptions, folder: Path) -> None:
    """Raise StartupError for packages that the engine or the model needs and that are not installed."""
    engine = _ENGINES[args.engine]
    if engine.extra is None or _is_static(args, folder):
        return
    libraries = filter(None, [*_NETWORK_LIBRARIES, engine.library])
    check_libraries(args.engine, libraries, engine.extra)
    check_model_packages(args.model_name_or_path, folder)


def _load_and_check(module: ModuleType, args: LoadOptions, files: ModelFiles | None) -> LoadedModel:
    report_stage("reading weights")
    model = cast(LoadedModel, module.load_model(args, files))
    if files is None:
        return model
    report_stage("checking outputs")
    check_outputs_differ(
        model, args.model_name_or_path, may_be_wrong=bool(args.graph_file and model.info.graph)
    )
    return measure_vector_length(model)


def installed_engines() -> dict[InferenceEngine, str]:
    """Return the installed engines, each with the name of its library; torch first.

    Nothing is imported to find out.
    """
    libraries = {engine: each.library for engine, each in _ENGINES.items() if each.library is not None}
    return {
        engine: libraries[engine]
        for engine in sorted(libraries, key=lambda each: each is not InferenceEngine.torch)
        if is_installed(libraries[engine])
    }


def load_reference(args: LoadOptions) -> Reference:
    """Load the model with sentence-transformers, as the reference for any engine.

    Raises StartupError where sentence-transformers is not installed or cannot load it.
    """
    try:
        module = importlib.import_module("infinity_emb.backends.torch.reference")
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


def _find_files(args: LoadOptions, *, graph_suffices: bool = False) -> ModelFiles:
    report_stage("finding files")
    return resolve_model_files(
        args.model_name_or_path,
        revision=args.revision,
        graph_suffices=graph_suffices,
        check=functools.partial(_check_packages, args),
    )


def _is_static(args: LoadOptions, folder: Path) -> bool:
    if args.model_kind not in (ModelKind.auto, ModelKind.embedder):
        return False
    return bool(importlib.import_module(_STATIC_MODULE).is_static(folder))
