"""Run a command: most take the declared options, a tool its own arguments."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence

from infinity_emb.cli.bulk import compute_files
from infinity_emb.cli.completion import run_completion
from infinity_emb.cli.log_setup import configure_logging
from infinity_emb.cli.parser import build_parser
from infinity_emb.cli.serve import preload, serve
from infinity_emb.cli.start_summary import draws_summary
from infinity_emb.cli.tool import print_line
from infinity_emb.cli.tools import TOOLS
from infinity_emb.config.bulk_options import BULK_PARTS, BulkOptions
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.config.environment import Given, collect_given, find_unknown_variables
from infinity_emb.config.options import list_options
from infinity_emb.config.server_config import ServerConfig

logger = logging.getLogger("infinity_emb")


def run_command(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code.

    Raises StartupError, and SystemExit after `--help`, `--version` and usage errors.
    """
    parser = build_parser()
    if run_completion(arguments, parser):
        return 0
    if arguments[0] in TOOLS:
        return TOOLS[arguments[0]].run(parser.parse_strictly(arguments))
    command, flags = parser.parse(arguments)
    if command == "verify":
        return _verify(flags)
    if command == "profile":
        return _profile(flags)
    if command in BULK_PARTS:
        return _compute_files(command, flags)
    _serve(_keep_last(flags) if command == "v1" else flags, is_deprecated=command == "v1")
    return 0


def _keep_last(flags: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Keep the last value of each option of a model: `v1` serves one."""
    names = {spelling.name for option in list_options(EngineArgs) for spelling in option.spellings}
    return {name: values[-1:] if name in names else values for name, values in flags.items()}


def _serve(flags: Mapping[str, list[str]], *, is_deprecated: bool) -> None:
    model_options = collect_given(EngineArgs, flags, is_per_model=True)
    server_options = collect_given(ServerConfig, flags, is_per_model=False)
    engine_args = EngineArgs.from_given(model_options)
    config = ServerConfig.from_given(server_options)
    configure_logging(config.log_level, config.log_format)
    if is_deprecated:
        logger.warning("v1 is deprecated; use v2, with --model-id in place of --model-name-or-path")
    _log_ignored_options(model_options)
    _warn_of_old_names({**model_options, **server_options})
    _warn_of_unknown_variables()
    if config.preload_only:
        preload(engine_args, is_drawn=draws_summary(config))
    else:
        serve(engine_args, config)


def _verify(flags: Mapping[str, list[str]]) -> int:
    """Compare each model; return 0 when every check of every model has passed."""
    from infinity_emb.verify.verify import verify  # imports an engine

    configure_logging("warning")
    given = collect_given(EngineArgs, flags, is_per_model=True)
    engine_args = EngineArgs.from_given(given)
    _warn_of_old_names(given)
    _warn_of_unknown_variables()
    is_equal = True
    for number, args in enumerate(engine_args):
        if number:
            print_line()
        checks = verify(args, write_line=print_line)
        is_equal = is_equal and bool(checks) and all(check.is_passed for check in checks)
    return 0 if is_equal else 1


def _profile(flags: Mapping[str, list[str]]) -> int:
    from infinity_emb.cli.profile.measure import measure  # imports an engine
    from infinity_emb.cli.profile.report import format_json, format_table

    configure_logging("warning")
    given = collect_given(EngineArgs, flags, is_per_model=True)
    _warn_of_old_names(given)
    _warn_of_unknown_variables()
    for number, args in enumerate(EngineArgs.from_given(given)):
        profile = measure(args)
        lines = [format_json(profile)] if "json" in flags else [*[""][:number], *format_table(profile)]
        print_line("\n".join(lines))
    return 0


def _compute_files(command: str, flags: Mapping[str, list[str]]) -> int:
    model_options = collect_given(EngineArgs, flags, is_per_model=True)
    options = collect_given(BulkOptions, flags, is_per_model=False)
    configure_logging("warning")
    _warn_of_old_names(model_options)
    _warn_of_unknown_variables()
    engine_args = EngineArgs.from_given(model_options)
    return compute_files(command, flags["inputs"], BulkOptions.from_given(options), engine_args)


def _log_ignored_options(given: Mapping[str, Given]) -> None:
    ignored = [
        given[option.name].source
        for option in list_options(EngineArgs)
        if option.spec.is_ignored and option.name in given
    ]
    if ignored:
        logger.info(
            "deprecated options are ignored (infinity_emb v2 --help lists them): %s", ", ".join(ignored)
        )


def _warn_of_old_names(given: Mapping[str, Given]) -> None:
    for option in (*list_options(EngineArgs), *list_options(ServerConfig)):
        source = given[option.name].source if option.name in given else None
        for old in option.spellings[1:]:
            if source in (old.flag, old.env):
                new = option.flag if source == old.flag else option.env
                logger.warning("%s is deprecated; use %s", source, new)


def _warn_of_unknown_variables() -> None:
    for name, nearest in find_unknown_variables(os.environ, EngineArgs, ServerConfig, BulkOptions).items():
        hint = f"did you mean {nearest}?" if nearest else "infinity_emb v2 --help lists them all"
        logger.warning("unknown environment variable %s; %s", name, hint)
