"""Command line flags made from the options that `config.py` declares, and the help page that lists them.

Knows no option by name. Values are checked by `config.py` alone, so typer is told that everything but a
switch is plain text. Called by `cli/commands.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand

from infinity_emb.config import EngineArgs, ServerConfig
from infinity_emb.options import (
    default_text,
    env_name,
    flag_name,
    is_repeated,
    option_choices,
    option_fields,
    option_kind,
)

_PANELS = ("Model", "Server", "Without effect, accepted for old command lines", "Help")

Command = TypeVar("Command", bound=Callable[..., None])


def with_flags(
    *,
    repeats_models: bool,
    renamed: Mapping[str, str] | None = None,
    configs: Sequence[type] = (EngineArgs, ServerConfig),
) -> Callable[[Command], Command]:
    """Give a command that takes `**flags` one keyword per option of a model, and of the server.

    repeats_models: a flag of a model may be given once per model, and its value is a list.
    renamed: field name → flag, where it differs from the usual one.
    configs: whose options the command takes.
    """

    def decorate(command: Command) -> Command:
        parameters = list(_parameters(configs, repeats_models, renamed or {}))
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads it
        return command

    return decorate


class CommandWithPanels(TyperCommand):
    """Lists the flags under headings, over the whole width: rich's table cuts long names at 80 columns."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one section per panel, `--help` in the last."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            panel = getattr(parameter, "rich_help_panel", None) or "Help"
            if record := parameter.get_help_record(ctx):
                sections.setdefault(panel, []).append(record)
        for panel in sorted(sections, key=_PANELS.index):
            with formatter.section(panel):
                formatter.write_dl(sections[panel])


def _parameters(
    configs: Sequence[type], repeats_models: bool, renamed: Mapping[str, str]
) -> Iterator[inspect.Parameter]:
    for config in configs:
        panel = _PANELS[0] if config is EngineArgs else _PANELS[1]
        for each in option_fields(config):
            flag = renamed.get(each.name, flag_name(each))
            is_list = is_repeated(config, each) or (repeats_models and config is EngineArgs)
            yield _parameter(config, each, flag, is_list=is_list, panel=panel)


def _parameter(config: type, each: Field[Any], flag: str, *, is_list: bool, panel: str) -> inspect.Parameter:
    """A keyword that is None unless the flag was used."""
    is_switch = option_kind(config, each) is bool
    kind: Any = bool if is_switch else str
    choices = option_choices(config, each)
    info = typer.Option(
        f"--{flag}/--no-{flag}" if is_switch else f"--{flag}",
        help=_help(each),
        metavar=None if is_switch else _metavar(config, each),
        show_default=False,
        rich_help_panel=_PANELS[2] if each.metadata["no_effect"] else panel,
        autocompletion=(lambda: list(choices)) if choices else None,
    )
    annotation: Any = list[kind] if is_list else kind
    return inspect.Parameter(
        each.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[annotation | None, info]
    )


def _help(each: Field[Any]) -> str:
    """The option's meaning, its variable and its default."""
    default = default_text(each)
    return f"{each.metadata['help']}  [{env_name(each)}{default and f'; default: {default}'}]"


def _metavar(config: type, each: Field[Any]) -> str:
    if choices := option_choices(config, each):
        return f"[{'|'.join(choices)}]"
    if is_repeated(config, each):
        return "TEXT"
    return {int: "NUMBER", tuple: "NUMBERS"}.get(option_kind(config, each), "TEXT")
