"""Check commands that pages show and tests cannot run: their options, targets, extras and variables exist."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from infinity_emb.cli import insert_command
from infinity_emb.cli.parser import build_parser
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.config.environment import DIRECTORY_VARIABLES, collect_given, find_unknown_variables
from infinity_emb.config.server_config import ServerConfig
from scripts.site.pages import REPOSITORY

MAKEFILE = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
PYPROJECT = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
IMAGES = ("infinity-emb", "infinity-emb:cuda", "infinity-emb:rocm")
# Programs of others, whose options are not ours to check.
FOREIGN = {"cd", "git", "export", "kubectl", "python", "ulimit", "zcat"}
# Those whose options make an `EngineArgs` and a `ServerConfig`.
SERVER_COMMANDS = {"v1", "v2", "verify", "profile"}
_VARIABLES_OF_LIBRARIES = ("HF_", "OTEL_", "OPENAI_", "FORWARDED_ALLOW_IPS", *DIRECTORY_VARIABLES)


def iterate_commands(text: str) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Yield the variables and the words of each command of a shell script without control structures."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        for is_separator, part in itertools.groupby(words, {"|", "&", "&&", ";"}.__contains__):
            if not is_separator:
                command = list(part)
                variables = dict(itertools.takewhile(all, map(split_assignment, command)))
                yield variables, command[len(variables) :]


def split_assignment(word: str) -> tuple[str, str]:
    """Return the name and the value of `NAME=value`, and two empty texts for another word."""
    match = re.fullmatch(r"([A-Z_]+)=(.+)", word)
    return (match[1], match[2]) if match else ("", "")


def check_script(text: str, *, may_hold_output: bool = False) -> None:
    """Check each command of a block. Raises AssertionError and SystemExit.

    may_hold_output: skip paragraphs that begin with no program that is known.
    """
    if may_hold_output:
        programs = "|".join([*CHECKS, *FOREIGN])
        begins = re.compile(rf"([A-Z_]+=\S+ )*(\S*/)?({programs}) ")
        text = "\n".join(each for each in text.split("\n\n") if begins.match(each))
        assert text, "no command that a test knows: put code into a fence that names its language"
    for variables, words in iterate_commands(text):
        check_command(variables, words)


def check_command(variables: Mapping[str, str], words: Sequence[str]) -> None:
    check_variables(variables)
    if not words or words[0] in FOREIGN:
        return
    program = words[0].rsplit("/", 1)[-1]
    assert program in CHECKS, f"no test knows how to check {program}"
    CHECKS[program](words[1:], variables)


def check_variables(variables: Iterable[str]) -> None:
    own = {name: "" for name in variables if not name.startswith(_VARIABLES_OF_LIBRARIES)}
    assert not [name for name in own if not name.startswith("INFINITY_")], own
    assert not find_unknown_variables(own, EngineArgs, ServerConfig)


def check_server_command(words: Sequence[str], variables: Mapping[str, str] | None = None) -> None:
    """Read options as the server does. Raises SystemExit or StartupError for what it would refuse."""
    command, flags = build_parser().parse(insert_command(words))
    if command not in SERVER_COMMANDS:
        return
    environ = dict(variables or {})
    EngineArgs.from_given(collect_given(EngineArgs, flags, environ, is_per_model=True))
    ServerConfig.from_given(collect_given(ServerConfig, flags, environ, is_per_model=False))


def check_make(words: Sequence[str], _: Mapping[str, str]) -> None:
    for target in words:
        if "=" not in target:
            pattern = re.sub("^bench-.*", "bench-", target)
            assert re.search(rf"^{re.escape(pattern)}.*:", MAKEFILE, re.MULTILINE), target
            module = REPOSITORY / "benchmarks" / target.removeprefix("bench-")
            is_module = module.is_dir() or module.with_suffix(".py").exists()
            assert is_module or not target.startswith("bench-") or target == "bench-compare", target


def check_pip(words: Sequence[str], _: Mapping[str, str]) -> None:
    for word in words:
        if match := re.search(r"\[(.+)\]", word):
            check_extras(match[1])


def check_extras(names: str) -> None:
    for name in names.split(","):
        assert re.search(rf"^{re.escape(name)} = \[", PYPROJECT, re.MULTILINE), name


def check_serve(words: Sequence[str], _: Mapping[str, str]) -> None:
    """Check that the file exists; tests/ray reads it."""
    assert words[0] == "run"
    assert (REPOSITORY / words[1]).is_file(), words[1]


def check_paths(words: Sequence[str], _: Mapping[str, str]) -> None:
    """Check that what is deployed exists."""
    for word in words:
        assert not word.startswith("deploy/") or (REPOSITORY / word).exists(), word


def check_docker(words: Sequence[str], variables: Mapping[str, str]) -> None:
    """Check build arguments, variables, and what follows the image's name, which the server reads."""
    for flag, value in itertools.pairwise(words):
        if flag == "--build-arg":
            name, _, setting = value.partition("=")
            assert f"ARG {name}" in DOCKERFILE, name
            if name == "EXTRAS":
                check_extras(setting)
    check_variables(variables)
    if words[0] == "run":
        pairs = [value.partition("=") for flag, value in itertools.pairwise(words) if flag == "-e"]
        given = {name: value for name, _, value in pairs if value}
        check_variables([name for name, *_ in pairs])
        image = next(at for at, word in enumerate(words) if word in IMAGES)
        check_server_command(words[image + 1 :], given)


CHECKS: Mapping[str, Callable[[Sequence[str], Mapping[str, str]], None]] = {
    "infinity_emb": check_server_command,
    "make": check_make,
    "pip": check_pip,
    "docker": check_docker,
    "serve": check_serve,
    "helm": check_paths,
    "kubectl": check_paths,
}
