"""Engine name → module that loads a model for it; each foreign library is imported only when asked for.

Knows nothing of what the modules do. A module here has `load_model(args: EngineArgs) -> LoadedModel`.
"""

from __future__ import annotations

import importlib
from typing import cast

from infinity_emb.backends.base import LoadedModel
from infinity_emb.config import EngineArgs
from infinity_emb.errors import StartupError
from infinity_emb.primitives import InferenceEngine

_MODULES = {
    InferenceEngine.torch: ("infinity_emb.backends.torch_loading", "torch"),
    InferenceEngine.debugengine: ("infinity_emb.backends.fake", None),
}


def load_model(args: EngineArgs) -> LoadedModel:
    """Load a model with the engine that `args` names.

    Raises StartupError for an engine that this version does not have or whose extra is not installed, and
    for everything that the engine refuses.
    """
    if args.engine not in _MODULES:
        available = ", ".join(_MODULES)
        raise StartupError(f"--engine {args.engine} is not available in this version; use one of {available}")
    module_name, extra = _MODULES[args.engine]
    try:
        module = importlib.import_module(module_name)
    except ImportError as exc:
        raise StartupError(
            f"--engine {args.engine} needs a package that is not installed ({exc});"
            f" install it with: pip install 'infinity-emb[{extra}]'"
        ) from exc
    return cast(LoadedModel, module.load_model(args))
