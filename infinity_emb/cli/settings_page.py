"""docs/settings.md, generated from the declared options; `make docs` writes it, and a test compares it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping

from infinity_emb.config.bulk_options import BulkOptions
from infinity_emb.config.engine_args import ENGINE_PARTS
from infinity_emb.config.environment import DIRECTORY_VARIABLES, IGNORED_VARIABLES
from infinity_emb.config.model_options import IgnoredOptions
from infinity_emb.config.options import Option, list_options
from infinity_emb.config.server_config import SERVER_PARTS

_INTRODUCTION = """\
# Settings

Generated from `infinity_emb/config/` by `make docs`; do not edit it by hand.

Every option is a flag of `infinity_emb v2` and an environment variable. The flag takes precedence over the
variable, the variable over the default. A boolean option is turned on with `--flag` and off with
`--no-flag`; its variable is `true` or `false`. An empty value stands for the default, unless the table says
otherwise. A wrong value or an unknown flag ends the start with a one-line error; an unknown `INFINITY_*`
variable is a warning. In Python, the options of a model are keywords of `EngineArgs`.

To serve several models, repeat the flag, or separate the values of the variable with `;`. A single value
applies to all models; several are matched by position, one per model.

    infinity_emb v2 --model-id first/model --model-id second/model --dtype float32
    INFINITY_MODEL_ID="first/model;second/model" INFINITY_DTYPE=float32 infinity_emb v2
"""

_BULK = """\
## Bulk jobs

Options of `infinity_emb embed`, `rerank` and `classify`, next to those of the model: see [bulk.md](bulk.md).
"""

_DIRECTORIES = "## Directories\n\nEnvironment variables without a flag.\n"

_IGNORED = """\
## Deprecated, ignored

Accepted so that command lines and compose files of infinity_emb 0.0.77 keep working. One log line names
those that were given.
"""

_IGNORED_VARIABLES = "These variables are ignored silently:\n"


def settings_page() -> str:
    """Write the page as Markdown."""
    parts = [_INTRODUCTION]
    for heading, part in {**ENGINE_PARTS, **SERVER_PARTS}.items():
        if part is not IgnoredOptions:
            parts += [f"## {heading}\n", _table(part)]
    parts += [
        _BULK,
        _table(BulkOptions),
        _DIRECTORIES,
        _list(DIRECTORY_VARIABLES),
        _IGNORED,
        _table(IgnoredOptions),
        _IGNORED_VARIABLES,
        _list(IGNORED_VARIABLES),
    ]
    return "\n".join(parts)


def _list(variables: Mapping[str, str]) -> str:
    return "\n".join(f"- `{name}`: {meaning}" for name, meaning in variables.items()) + "\n"


def _table(part: type) -> str:
    lines = [
        "| flag | variable | value | default | meaning |",
        "|---|---|---|---|---|",
        *(f"| {' | '.join(_cells(option))} |" for option in list_options(part)),
    ]
    return "\n".join(lines) + "\n"


def _cells(option: Option) -> Iterator[str]:
    yield f"`{option.flag}`"
    yield f"`{option.env}`"
    yield _describe_value(option)
    yield f"`{option.default_text}`" if option.default_text else ""
    old = ", ".join(f"`{spelling.flag}`" for spelling in option.spellings[1:])
    yield f"{option.spec.help} {option.spec.details}{old and f' Deprecated name: {old}.'}".strip()


def _describe_value(option: Option) -> str:
    """Return the choices, or the type with its limits."""
    if option.choices:
        return ", ".join(f"`{choice}`" for choice in option.choices)
    if option.is_repeated:
        return "string, repeatable"
    names = {bool: "flag", int: "integer", tuple: "integers", str: "string"}
    limits = [f"from {option.spec.minimum}"] * bool(option.spec.minimum)
    limits += [f"to {option.spec.maximum}"] * bool(option.spec.maximum)
    return " ".join([*["`auto` or"] * option.spec.has_auto, names[option.kind], *limits])


if __name__ == "__main__":
    sys.stdout.write(settings_page())
