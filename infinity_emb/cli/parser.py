"""The argument parser. Most commands take the declared options.

Their values stay text here; `config/parsing.py` checks them like environment variables.
"""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from infinity_emb._version import __version__
from infinity_emb.cli.tool import Tool
from infinity_emb.cli.tools import TOOLS
from infinity_emb.config.bulk_options import BULK_PARTS
from infinity_emb.config.engine_args import ENGINE_PARTS
from infinity_emb.config.model_options import IgnoredOptions
from infinity_emb.config.options import ENV_PREFIX, Option, list_options
from infinity_emb.config.parsing import did_you_mean
from infinity_emb.config.server_config import SERVER_PARTS

_MAX_WIDTH = 100
_HELP_COLUMN = 36
_BULK_SUMMARIES = {
    "embed": "Embed the texts of files.",
    "rerank": "Score the queries and documents of files.",
    "classify": "Classify the texts of files.",
}
_UNITS = {"_s": "SEC", "_mb": "MB", "_bytes": "BYTES"}
_SEVERAL_MODELS = (
    "For several models, repeat the options of a model: one value per model, or a single one for all. "
)
_ENVIRONMENT = (
    "Every option is also an environment variable: --max-batch-tokens is INFINITY_MAX_BATCH_TOKENS, with ';'"
    " between several values. The command line takes precedence. docs/settings.md explains each option."
)


class CommandParser(argparse.ArgumentParser):
    """Report a usage error in one line, and an unknown option with the most similar one."""

    commands: Mapping[str, CommandParser] = {}

    def parse(self, arguments: Sequence[str]) -> tuple[str, dict[str, list[str]]]:
        """Return the command, and field name → the values that its flag was given.

        Exits with code 2 after a usage error, and with code 0 after `--help` and `--version`.
        """
        values = vars(self.parse_strictly(arguments))
        values = {name: value for name, value in values.items() if value is not None}
        return values.pop("command", ""), values

    def parse_strictly(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Return the arguments as argparse does; suggest the most similar name for an unknown one."""
        command = self.commands.get(arguments[0], self)
        namespace, unknown = self.parse_known_args(command.join_values(arguments))
        if unknown:
            command.refuse(unknown[0], list(self.commands))
        return namespace

    def join_values(self, arguments: Sequence[str]) -> list[str]:
        """Write `--api-key -x` as `--api-key=-x`, which argparse does not take for an option."""
        joined: list[str] = []
        rest = iter(arguments)
        for argument in rest:
            action = self._option_string_actions.get(argument)
            takes_value = action is not None and action.nargs is None
            value = next(rest, None) if takes_value else None
            joined.append(argument if value is None else f"{argument}={value}")
        return joined

    def refuse(self, argument: str, commands: Sequence[str]) -> NoReturn:
        """Exit with an error about an unknown argument."""
        name = argument.partition("=")[0]
        if name.startswith("-"):
            self.error(f"No such option: {name}{did_you_mean(name, list(self._option_string_actions))}")
        self.error(f"unexpected argument {argument!r}; the commands are {', '.join(commands)}")

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"error: {message}\nTry '{self.prog} --help'.\n")


class _AppendFlag(argparse.Action):
    """Append "true" for `--docs` and "false" for `--no-docs`."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        given = getattr(namespace, self.dest) or []
        is_off = (option_string or "").startswith("--no-")
        setattr(namespace, self.dest, [*given, "false" if is_off else "true"])


class _HelpFormatter(argparse.HelpFormatter):
    """Use at most 100 columns, and write `--[no-]docs` for `--docs, --no-docs`."""

    def __init__(self, prog: str) -> None:
        width = min(shutil.get_terminal_size().columns, _MAX_WIDTH)
        super().__init__(prog, max_help_position=_HELP_COLUMN, width=width)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = textwrap.wrap(
            text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
        )
        return "\n".join(lines)

    def _format_action(self, action: argparse.Action) -> str:
        """Leave out the line above the list of commands."""
        text = super()._format_action(action)
        return text.partition("\n")[2] if isinstance(action, argparse._SubParsersAction) else text

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if isinstance(action, _AppendFlag):
            return action.option_strings[0].replace("--", "--[no-]", 1)
        return super()._format_action_invocation(action)


def build_parser() -> CommandParser:
    """Build the parser of the program, with one subparser per command."""
    parser = CommandParser(
        prog="infinity_emb",
        description="Serve embedding, reranking and classification models over HTTP. Without a command, v2 is"
        " run.",
        epilog="'infinity_emb COMMAND --help' describes the options of a command.",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__, help="show the version and exit")
    # Completion itself is in `completion.py`; these show up in the help.
    parser.add_argument("--show-completion", metavar="SHELL", nargs="?", help="print a completion script")
    parser.add_argument("--install-completion", metavar="SHELL", nargs="?", help="install shell completion")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    every_part = {**ENGINE_PARTS, **SERVER_PARTS}
    parser.commands = {
        "v2": _add_command(commands, "v2", "Serve one or more models.", every_part),
        "v1": _add_command(commands, "v1", "Serve one model. Deprecated: use v2.", every_part),
        "verify": _add_command(
            commands,
            "verify",
            "Compare models with sentence-transformers.",
            ENGINE_PARTS,
            details="Loads each model twice and computes texts, images or sounds that come with the package:"
            " one at a time, in one list, and concurrently. Prints the largest difference of any number,"
            " relative to the largest one of its output or to 1, and the lowest cosine. Exits with 0 when all"
            " outputs are equal up to rounding, and with 1 otherwise. ",
        ),
        "profile": _add_profile(commands),
        **{name: _add_tool(commands, name, tool) for name, tool in TOOLS.items()},
        **{name: _add_bulk_command(commands, name) for name in BULK_PARTS},
    }
    return parser


def _add_profile(commands: Any) -> CommandParser:
    command = _add_command(
        commands,
        "profile",
        "Show where the time of a request goes.",
        ENGINE_PARTS,
        details="Sends requests of sample texts through the whole server in this process, one at a time, and"
        " prints the time of each stage, the share of the device's limit that the network reaches, and the"
        " next bottleneck. ",
    )
    command.add_argument(
        "--json", action="store_const", const=["true"], help="print a line of JSON per model"
    )
    return command


def _add_tool(commands: Any, name: str, tool: Tool) -> CommandParser:
    parser: CommandParser = commands.add_parser(
        name,
        help=tool.summary,
        usage=tool.usage,
        description=f"{tool.summary} {tool.details}",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    tool.add_arguments(parser)
    nested = next((each for each in parser._actions if isinstance(each, argparse._SubParsersAction)), None)
    parser.commands = nested.choices if nested else {}
    return parser


def _add_bulk_command(commands: Any, name: str) -> CommandParser:
    command = _add_command(
        commands,
        name,
        _BULK_SUMMARIES[name],
        {**BULK_PARTS[name], **ENGINE_PARTS},
        details="Reads JSON Lines, CSV, Parquet, Arrow and plain text; see docs/bulk.md. A stopped or"
        " killed job is continued by the same command. Exits with 0 when all rows are computed, and"
        " with 3 when some are in the file of bad rows. ",
        usage=f"infinity_emb {name} INPUT... -o OUTPUT [OPTIONS]",
    )
    command.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="file, folder, glob, address such as s3://…, or - for stdin",
    )
    return command


def _add_command(
    commands: Any,
    name: str,
    summary: str,
    parts: Mapping[str, type],
    *,
    details: str = "",
    usage: str | None = None,
) -> CommandParser:
    command: CommandParser = commands.add_parser(
        name,
        help=summary,
        usage=usage or f"infinity_emb {name} [OPTIONS]",
        description=f"{summary} {details}{'' if name == 'v1' or usage else _SEVERAL_MODELS}",
        epilog=_ENVIRONMENT,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    for heading, part in sorted(parts.items(), key=lambda each: each[1] is IgnoredOptions):
        group = command.add_argument_group(heading)
        for option in list_options(part):
            is_renamed = name == "v1" and option.name == "model_name_or_path"
            _add_option(group, option, "--model-name-or-path" if is_renamed else option.flag)
    return command


def _add_option(group: Any, option: Option, flag: str) -> None:
    """Add an option with the help, and its deprecated names without."""
    old = [(each.name, each.flag) for each in option.spellings[1:]]
    for dest, name in [(option.name, flag), *old]:
        help_text = _describe(option) if name == flag else argparse.SUPPRESS
        if option.kind is bool:
            off = name.replace("--", "--no-", 1)
            group.add_argument(name, off, action=_AppendFlag, nargs=0, dest=dest, help=help_text)
        else:
            names = [each for each in (option.spec.short, name) if each]
            group.add_argument(*names, action="append", dest=dest, metavar=_metavar(option), help=help_text)


def _describe(option: Option) -> str:
    """Return the help with the choices, the default, and the variable where its name cannot be guessed."""
    choices = f" ({', '.join(option.choices)})" if option.choices else ""
    default = f" [{option.default_text}]" if option.default_text else ""
    is_guessable = option.env == ENV_PREFIX + option.key.upper()
    variable = "" if is_guessable else f" [{option.env}]"
    return f"{option.spec.help.removesuffix('.')}{choices}{default}{variable}".replace("%", "%%")


def _metavar(option: Option) -> str:
    if option.choices:
        return "NAME"
    if option.kind is int:
        return next((unit for ending, unit in _UNITS.items() if option.name.endswith(ending)), "N")
    return "N,N" if option.kind is tuple and not option.is_repeated else "TEXT"
