"""`MANAGER`: the options of the environment as infinity_emb 0.0.77 showed them to Python code.

Derived from the declarations in `config.py`, so there is no second list of options. Reads a variable when
its name is first asked for. Nothing inside uses it: entry points read the same variables into configs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import Field
from pathlib import Path
from typing import Any

from infinity_emb.config import EngineArgs, ServerConfig, given_options
from infinity_emb.home import home_folder
from infinity_emb.options import ENV_PREFIX, env_name, option_fields, parse_option

# An option per model here, and one number for all of them there.
_ONE_FOR_ALL_MODELS = ("queue_size",)


class Environment:
    """`MANAGER.port` is the value of INFINITY_PORT or its default; `MANAGER.model_id` a list, one per model.

    Numbers and yes-or-no are what they are; all else is text, choices and lists of devices too.
    Raises StartupError naming the variable where its value does not parse.
    """

    anonymous_usage_stats = False  # there is no telemetry
    calibration_dataset_url = ""  # the texts come with the package

    @property
    def cache_dir(self) -> Path:
        """Where calibration files lie; not made by asking."""
        return home_folder(os.environ) / "calibration"

    def __getattr__(self, name: str) -> Any:
        """Called for names that are not there yet: a value is read once."""
        for config, each in _options():
            if name == _attribute_name(each):
                values = _values(config, each)
                is_list = config is EngineArgs and name not in _ONE_FOR_ALL_MODELS
                setattr(self, name, values if is_list else values[-1])
                return self.__dict__[name]
        raise AttributeError(f"infinity_emb has no option {name!r}; there are: {', '.join(dir(self))}")

    def __dir__(self) -> list[str]:
        own = (name for name in vars(type(self)) if not name.startswith("_"))
        return sorted({*own, *(_attribute_name(each) for _, each in _options())})


def _options() -> Iterator[tuple[type, Field[Any]]]:
    return ((config, each) for config in (EngineArgs, ServerConfig) for each in option_fields(config))


def _attribute_name(each: Field[Any]) -> str:
    """INFINITY_MODEL_ID → `model_id`."""
    return env_name(each).removeprefix(ENV_PREFIX).lower()


def _values(config: type, each: Field[Any]) -> list[bool | int | str]:
    given = given_options(config, {}).get(each.name)
    values = given.values if given else [each.default]
    return [_plain(value, parse_option(config, each, value, source=env_name(each))) for value in values]


def _plain(given: Any, parsed: Any) -> bool | int | str:
    if isinstance(parsed, int):
        return parsed
    return str((given if isinstance(parsed, tuple) else parsed) or "")


MANAGER = Environment()
