"""docs/settings.md, made from the options that `config.py` declares.

    python -m infinity_emb.cli.settings_page > docs/settings.md

Knows no option by name. A test compares the file with what stands here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import Field
from typing import Any

from infinity_emb.config import EngineArgs, ServerConfig
from infinity_emb.options import (
    ENV_NAMES_OF_FOLDERS,
    ENV_NAMES_WITHOUT_EFFECT,
    default_text,
    env_name,
    flag_name,
    is_repeated,
    option_choices,
    option_fields,
    option_kind,
)

_INTRODUCTION = """\
# Settings

Made by `python -m infinity_emb.cli.settings_page > docs/settings.md`; edit `infinity_emb/config.py` instead.

Every option is a flag of `infinity_emb v2` and an environment variable. The flag counts before the variable,
the variable before the default. A switch is `--flag` or `--no-flag`, its variable `true` or `false`. An empty
value is the default, unless the table says otherwise. A wrong value or an unknown flag ends the start with
one line that says what was expected; an unknown `INFINITY_*` variable is a warning. In Python, an option of a
model is a keyword of `EngineArgs`.
"""

_MODEL = """\
## Model

To serve several models, repeat the flag, or put `;` between the values of the variable. One value holds for
all models; several are matched by position, and their number must be that of the models.

    infinity_emb v2 --model-id first/model --model-id second/model --dtype float32
    INFINITY_MODEL_ID="first/model;second/model" INFINITY_DTYPE=float32 infinity_emb v2
"""

_SERVER = "## Server\n"

_FOLDERS = "## Folders\n\nEnvironment variables alone, no flags.\n"

_WITHOUT_EFFECT = """\
## Without effect

Accepted so that command lines and compose files of infinity_emb 0.0.77 keep working. One line in the log
names those that were given.
"""

_VARIABLES_WITHOUT_EFFECT = "These variables are accepted in silence:\n"


def settings_page() -> str:
    """The page as Markdown."""
    parts = [
        _INTRODUCTION,
        _MODEL,
        _table(EngineArgs, (each for each in option_fields(EngineArgs) if not each.metadata["no_effect"])),
        _SERVER,
        _table(ServerConfig, option_fields(ServerConfig)),
        _FOLDERS,
        _list(ENV_NAMES_OF_FOLDERS),
        _WITHOUT_EFFECT,
        _table(EngineArgs, (each for each in option_fields(EngineArgs) if each.metadata["no_effect"])),
        _VARIABLES_WITHOUT_EFFECT,
        _list(ENV_NAMES_WITHOUT_EFFECT),
    ]
    return "\n".join(parts)


def _list(variables: Mapping[str, str]) -> str:
    return "\n".join(f"- `{name}`: {meaning}" for name, meaning in variables.items()) + "\n"


def _table(config: type, options: Iterable[Field[Any]]) -> str:
    lines = [
        "| flag | variable | value | default | meaning |",
        "|---|---|---|---|---|",
        *(f"| {' | '.join(_cells(config, each))} |" for each in options),
    ]
    return "\n".join(lines) + "\n"


def _cells(config: type, each: Field[Any]) -> Iterator[str]:
    default = default_text(each)
    yield f"`--{flag_name(each)}`"
    yield f"`{env_name(each)}`"
    yield _value(config, each)
    yield f"`{default}`" if default else ""
    yield str(each.metadata["help"])


def _value(config: type, each: Field[Any]) -> str:
    """What may be given: the choices, or the type with its limits."""
    if choices := option_choices(config, each):
        return ", ".join(f"`{choice}`" for choice in choices)
    if is_repeated(config, each):
        return "text, any number of times"
    names = {bool: "switch", int: "whole number", tuple: "numbers", str: "text"}
    minimum, maximum = each.metadata["minimum"], each.metadata["maximum"]
    limits = [f"from {minimum}"] * bool(minimum) + [f"to {maximum}"] * bool(maximum)
    return " ".join([names[option_kind(config, each)], *limits])


if __name__ == "__main__":
    sys.stdout.write(settings_page())
