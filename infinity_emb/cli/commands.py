"""The commands `v2`, `v1` and `verify`: flags and environment → configs → a server process, or a comparison.

A flag counts before its environment variable, that before the default. Knows no option by name but the
model id, which `v1` spells differently, and those that the start itself turns on.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from infinity_emb import __version__
from infinity_emb.cli.flags import CommandWithPanels, with_flags
from infinity_emb.cli.logs import configure_logging
from infinity_emb.cli.serving_process import preload, serve
from infinity_emb.config import EngineArgs, ServerConfig, given_options
from infinity_emb.options import Given, option_fields, unknown_env_names

logger = logging.getLogger("infinity_emb")

# No rich: it draws tables that cut long names, and frames around one-line errors.
app = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 110},
)


@app.callback(invoke_without_command=True)
def show_version(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Serve embedding models over REST.

    The command v2 may be left out: `infinity_emb --model-id X` serves X.
    """
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command(cls=CommandWithPanels)
@with_flags(repeats_models=True)
def v2(**flags: Any) -> None:
    """Serve one or more models.

    Options of a model may be repeated, one value per model; a single value holds for all of them. Every
    option has an environment variable too, with ; between several values; where both are given, the flag
    counts.
    """
    _run(flags)


@app.command(cls=CommandWithPanels)
@with_flags(repeats_models=False, renamed={"model_name_or_path": "model-name-or-path"})
def v1(**flags: Any) -> None:
    """Serve one model. Deprecated: use v2."""
    _run(flags, is_deprecated=True)


@app.command(cls=CommandWithPanels)
@with_flags(repeats_models=True, configs=(EngineArgs,))
def verify(**flags: Any) -> None:
    """Compare served models with sentence-transformers.

    Each model is loaded twice on this machine and asked about texts, images or sounds that come with this
    program: one at a time, in one list, and all at once. The table shows the largest difference of any
    number, as a part of the largest in its answer or of 1, and the lowest cosine. The exit code is 0 where
    all answers are equal but for rounding, and 1 where one differs or a model cannot be compared.
    """
    # Imported here, as the engines are: `--help` is quick.
    from infinity_emb.verification import verify

    configure_logging("warning")
    _warn_of_unknown_variables()
    is_equal = True
    for number, args in enumerate(EngineArgs.from_given(given_options(EngineArgs, _columns(flags)))):
        if number:
            typer.echo()
        checks = verify(args, tell=typer.echo)
        is_equal = is_equal and bool(checks) and all(check.is_passed for check in checks)
    if not is_equal:
        raise typer.Exit(1)


def _columns(flags: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {
        name: value if isinstance(value, list) else [value]
        for name, value in flags.items()
        if value is not None
    }


def _run(flags: Mapping[str, Any], *, is_deprecated: bool = False) -> None:
    columns = _columns(flags)
    model_options = given_options(EngineArgs, columns)
    server_options = given_options(ServerConfig, columns)
    engine_args = EngineArgs.from_given(model_options)
    config = ServerConfig.from_given(server_options)
    configure_logging(config.log_level, config.log_format)
    if is_deprecated:
        logger.warning("v1 is deprecated; use v2, with --model-id in place of --model-name-or-path")
    _log_without_effect(model_options)
    _warn_of_unknown_variables()
    if config.preload_only:
        preload(engine_args)
    else:
        serve(engine_args, config)


def _log_without_effect(given: Mapping[str, Given]) -> None:
    idle = [
        given[each.name].source
        for each in option_fields(EngineArgs)
        if each.metadata["no_effect"] and each.name in given
    ]
    if idle:
        logger.info("accepted without effect, see docs/settings.md: %s", ", ".join(idle))


def _warn_of_unknown_variables() -> None:
    for name, nearest in unknown_env_names(os.environ, EngineArgs, ServerConfig).items():
        hint = f"did you mean {nearest}?" if nearest else "see docs/settings.md"
        logger.warning("the environment variable %s is no option; %s", name, hint)
