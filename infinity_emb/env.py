"""`MANAGER`: options from the environment, as infinity_emb 0.0.77 offered them to Python code.

A variable is read when its name is first used. The package itself does not use this module.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.config.environment import collect_given
from infinity_emb.config.limits import QueueLimits
from infinity_emb.config.options import ENV_PREFIX, Option, list_options
from infinity_emb.config.parsing import parse_option
from infinity_emb.config.server_config import ServerConfig
from infinity_emb.storage.files import cache_dir


class Environment:
    """`MANAGER.port` is the value of INFINITY_PORT or its default; `MANAGER.model_id` a list, one per model.

    Numbers and flags are parsed; everything else stays text, choices and lists of devices too.
    Raises StartupError naming the variable for a wrong value.
    """

    anonymous_usage_stats = False  # there is no telemetry
    calibration_dataset_url = ""  # the texts come with the package

    @property
    def cache_dir(self) -> Path:
        """The directory of calibration files; reading it does not create it."""
        return cache_dir(os.environ) / "calibration"

    def __getattr__(self, name: str) -> Any:
        """Read a value when its name is first used."""
        for config in (EngineArgs, ServerConfig):
            for option in list_options(config):
                if name == _attribute_name(option):
                    value = _read(config, option)
                    setattr(self, name, value)
                    return value
        raise AttributeError(f"infinity_emb has no option {name!r}; there are: {', '.join(dir(self))}")

    def __dir__(self) -> list[str]:
        own = {name for name in vars(type(self)) if not name.startswith("_")}
        options = (*list_options(EngineArgs), *list_options(ServerConfig))
        return sorted(own | {_attribute_name(option) for option in options})


def _attribute_name(option: Option) -> str:
    """Turn INFINITY_MODEL_ID into `model_id`."""
    return option.env.removeprefix(ENV_PREFIX).lower()


def _read(config: type, option: Option) -> Any:
    """Return one value per model, or a single one. The queue was shared by all models in 0.0.77."""
    is_model = config is EngineArgs
    given = collect_given(config, {}, is_per_model=is_model).get(option.name)
    texts = given.values if given else [None]
    values = [_simplify(text, parse_option(option, text, source=option.env)) for text in texts]
    return values if is_model and option not in list_options(QueueLimits) else values[-1]


def _simplify(text: Any, parsed: Any) -> bool | int | str:
    if isinstance(parsed, int):
        return parsed
    return str((text if isinstance(parsed, tuple) else parsed) or "")


MANAGER = Environment()
