"""Shell completion: scripts for bash, zsh and fish, which call the program itself for candidates."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from infinity_emb.cli.parser import CommandParser
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.config.options import list_options
from infinity_emb.config.server_config import ServerConfig
from infinity_emb.errors import StartupError

# Set by the scripts: complete_bash, complete_zsh or complete_fish.
VARIABLE = "_INFINITY_EMB_COMPLETE"

_SCRIPTS = {
    "bash": """\
_infinity_emb_completion() {
    local IFS=$'\\n'
    COMPREPLY=($(env COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD \\
        _INFINITY_EMB_COMPLETE=complete_bash "$1"))
}
complete -o default -F _infinity_emb_completion infinity_emb
""",
    "zsh": """\
#compdef infinity_emb
_infinity_emb_completion() {
    local candidates=("${(@f)$(env COMP_WORDS="${(F)words}" COMP_CWORD=$((CURRENT - 1)) \\
        _INFINITY_EMB_COMPLETE=complete_zsh infinity_emb)}")
    compadd -- $candidates
}
compdef _infinity_emb_completion infinity_emb
""",
    "fish": """\
function _infinity_emb_completion
    set --local words (commandline -opc) (commandline -ct)
    env COMP_WORDS=(string join \\n -- $words | string collect --no-trim-newlines) \\
        COMP_CWORD=(count (commandline -opc)) _INFINITY_EMB_COMPLETE=complete_fish infinity_emb
end
complete --command infinity_emb --arguments '(_infinity_emb_completion)'
""",
}
_PATHS = {
    "bash": "~/.local/share/bash-completion/completions/infinity_emb",
    "zsh": "~/.zfunc/_infinity_emb",
    "fish": "~/.config/fish/completions/infinity_emb.fish",
}


def list_candidates(parser: CommandParser, environ: Mapping[str, str]) -> list[str]:
    """List completions of the word under the cursor, from the variables that the script has set.

    An empty list leaves the word to the shell, which completes file names.
    """
    words = _split(environ.get("COMP_WORDS", ""))
    index = int(environ.get("COMP_CWORD") or len(words))
    current = words[index] if index < len(words) else ""
    command = _find_command(parser, words[1:index])
    flag, equals, beginning = current.partition("=")
    if equals and flag:  # --dtype=fl in zsh and fish; bash makes three words of it
        return [
            f"{flag}={value}" for value in _list_values(command, flag) or () if value.startswith(beginning)
        ]
    previous = words[index - 1] if 0 < index <= len(words) else ""
    if previous == "=" and index > 1:
        previous = words[index - 2]
    candidates = _list_values(command, previous)
    if candidates is None:
        command = parser if index == 1 else command
        candidates = [*command.commands, *_flags(command)]
    return [candidate for candidate in candidates if candidate.startswith("" if current == "=" else current)]


def _split(words: str) -> list[str]:
    """Split the command line at line ends, as the scripts write it to preserve words with spaces."""
    return words.split("\n") if "\n" in words else words.split()


def completion_script(shell: str | None) -> str:
    """Return the script for a shell, by default $SHELL. Raises StartupError for an unsupported shell."""
    return _SCRIPTS[_detect_shell(shell)]


def install_completion(shell: str | None) -> Path:
    """Write the script to where the shell looks for it, and return that path."""
    name = _detect_shell(shell)
    path = Path(_PATHS[name]).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_SCRIPTS[name], encoding="utf-8")
    return path


def run_completion(arguments: Sequence[str], parser: CommandParser) -> bool:
    """Handle a request for candidates, `--show-completion` and `--install-completion`; else return False."""
    if os.environ.get(VARIABLE, "").startswith("complete_"):
        sys.stdout.writelines(f"{candidate}\n" for candidate in list_candidates(parser, os.environ))
        return True
    option, _, value = arguments[0].partition("=")
    shell = value or next(iter(arguments[1:]), None)
    if option == "--show-completion":
        sys.stdout.write(completion_script(shell))
    elif option == "--install-completion":
        sys.stdout.write(f"installed {install_completion(shell)}; it works in new shells\n")
    return option in ("--show-completion", "--install-completion")


def _find_command(parser: CommandParser, words: Sequence[str]) -> CommandParser:
    """Return the command or nested command that the words name; default: `v2`."""
    command = next((parser.commands[word] for word in words if word in parser.commands), None)
    if command is None:
        return parser.commands["v2"]
    return next((command.commands[word] for word in words if word in command.commands), command)


def _list_values(command: argparse.ArgumentParser, flag: str) -> Sequence[str] | None:
    """Return the choices of an option, [] if it takes any value; None for an option without a value."""
    action = command._option_string_actions.get(flag)
    if action is None or action.nargs == 0:
        return None
    options = [*list_options(EngineArgs), *list_options(ServerConfig)]
    declared = next((option.choices for option in options if option.flag == flag), ())
    return declared or list(action.choices or ())


def _flags(parser: argparse.ArgumentParser) -> list[str]:
    actions = [action for action in parser._actions if action.help is not argparse.SUPPRESS]
    return [flag for action in actions for flag in action.option_strings if flag.startswith("--")]


def _detect_shell(shell: str | None) -> str:
    name = shell or Path(os.environ.get("SHELL", "")).name
    if name not in _SCRIPTS:
        raise StartupError(f"no completion for shell {name!r}; give one of {', '.join(_SCRIPTS)}")
    return name
