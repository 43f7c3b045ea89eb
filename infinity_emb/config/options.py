"""Declare options as dataclass fields, and describe the declared ones.

Type, default, limits and help are written at the field only. Command line flags, environment variables,
docs/settings.md and `/admin/models` are derived from them.
"""

from __future__ import annotations

import functools
import textwrap
import types
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

ENV_PREFIX = "INFINITY_"


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionSpec:
    """The declaration of an option, apart from its type annotation and default.

    help: one sentence; details: further ones, for docs/settings.md.
    flag: the command line name without dashes, if it differs from the field's; env: likewise, without
        `INFINITY_`.
    short: a second name for the command line, with its dash.
    choices: the texts that are allowed; an enum field has its own.
    check: returns what is wrong with a value ("must start with /"), or None.
    may_be_empty: whether empty text is a value; otherwise it means the default.
    has_auto: whether the text `auto` is a value besides the numbers.
    when_empty: makes empty text an error, which says that the server does this without the option.
    is_ignored: accepted so that old command lines keep working, without effect.
    affects_speed: whether the value may change which engine is the fastest for given model files.
    old_names: deprecated field names that are still accepted.
    """

    help: str
    details: str = ""
    flag: str | None = None
    env: str | None = None
    short: str | None = None
    minimum: int | None = None
    maximum: int | None = None
    choices: tuple[str, ...] = ()
    check: Callable[[Any], str | None] | None = None
    may_be_empty: bool = False
    has_auto: bool = False
    when_empty: str = ""
    is_ignored: bool = False
    affects_speed: bool = True
    old_names: tuple[str, ...] = ()


class Spelling(NamedTuple):
    """A field name with the flag and the environment variable that belong to it."""

    name: str
    flag: str
    env: str


@dataclass(frozen=True, slots=True)
class Option:
    """A declared option with its name, type and default.

    kind: bool, int, str, tuple or an Enum: the annotation without its `| None`.
    is_repeated: whether all given values count (`tuple[str, ...]`), not only the last.
    """

    name: str
    kind: type
    is_repeated: bool
    default: Any
    spec: OptionSpec

    @property
    def flag(self) -> str:
        """The flag: `--max-batch-tokens`."""
        return f"--{self.spec.flag or self.name.replace('_', '-')}"

    @property
    def key(self) -> str:
        """The flag as an identifier: `max_batch_tokens`."""
        return self.flag.removeprefix("--").replace("-", "_")

    @property
    def env(self) -> str:
        """The environment variable: `INFINITY_MAX_BATCH_TOKENS`."""
        return ENV_PREFIX + (self.spec.env or self.key.upper())

    @property
    def spellings(self) -> tuple[Spelling, ...]:
        """The names of the option: the current ones, then deprecated ones."""
        old = (Spelling(n, f"--{n.replace('_', '-')}", ENV_PREFIX + n.upper()) for n in self.spec.old_names)
        return (Spelling(self.name, self.flag, self.env), *old)

    @property
    def choices(self) -> tuple[str, ...]:
        """The texts that are allowed, aliases included; empty where any text is."""
        return tuple(self.kind.__members__) if issubclass(self.kind, Enum) else self.spec.choices

    @property
    def default_text(self) -> str:
        """The default as a user would write it; empty where there is none."""
        if isinstance(self.default, bool):
            return str(self.default).lower()
        return "" if self.default in (None, ()) else str(self.default)


def option(default: Any, help: str, details: str = "", *, is_secret: bool = False, **declaration: Any) -> Any:
    """Declare an option as a dataclass field; see `OptionSpec` for the keywords.

    is_secret: leave the value out of the config's `repr`.
    """
    spec = OptionSpec(help=help, details=details, **declaration)
    return field(default=default, repr=not is_secret, metadata={"option": spec})


def list_options(config: type) -> tuple[Option, ...]:
    """List the options of a config class in the order of its fields."""
    return _read_declarations(config)


@functools.cache
def _read_declarations(config: Any) -> tuple[Option, ...]:
    hints = get_type_hints(config)
    return tuple(
        _describe(each.name, hints[each.name], each.default, each.metadata["option"])
        for each in fields(config)
        if "option" in each.metadata
    )


def describe_keywords(config: type) -> str:
    """Return a paragraph for each option of a config class, for the docstring of its constructor."""
    return "\n".join(map(_describe_keyword, list_options(config)))


def _describe_keyword(option: Option) -> str:
    facts = [", ".join(option.choices) or option.kind.__name__]
    if option.default_text:
        facts.append(f"default {option.default_text}")
    text = f"{option.name} ({'; '.join(facts)}): {option.spec.help} {option.spec.details}"
    return textwrap.fill(text, width=100, subsequent_indent="    ", break_on_hyphens=False)


def get_option(config: type, name: str) -> Option:
    """Return the option of a field. Raises KeyError."""
    return {each.name: each for each in list_options(config)}[name]


def _describe(name: str, hint: Any, default: Any, spec: OptionSpec) -> Option:
    if get_origin(hint) is types.UnionType:
        hint = next(part for part in get_args(hint) if part is not types.NoneType)
    kind: type = get_origin(hint) or hint
    is_repeated = kind is tuple and get_args(hint)[0] is str
    return Option(name, kind, is_repeated, default, spec)
