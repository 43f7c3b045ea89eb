from __future__ import annotations

import dataclasses
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from infinity_emb import cli
from infinity_emb._version import __version__
from infinity_emb.cli import commands, completion
from infinity_emb.cli.parser import build_parser
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.config.options import Option, list_options
from infinity_emb.config.server_config import ServerConfig

CLEAN_ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("INFINITY_")}


@dataclasses.dataclass
class Outcome:
    """What a command line led to, without serving."""

    exit_code: int | str | None = None
    served: list[EngineArgs] = dataclasses.field(default_factory=list)
    preloaded: list[EngineArgs] = dataclasses.field(default_factory=list)
    config: ServerConfig | None = None


class CommandLine:
    """`infinity_emb` in this process, with the step that serves left out."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.outcome = Outcome()
        self._monkeypatch = monkeypatch
        for name in os.environ.keys() - CLEAN_ENVIRON.keys():
            monkeypatch.delenv(name)
        monkeypatch.setattr(commands, "configure_logging", lambda level, log_format="text": None)
        monkeypatch.setattr(commands, "serve", self._serve)
        monkeypatch.setattr(commands, "preload", self._preload)

    def __call__(self, *arguments: str, **environ: str) -> Outcome:
        for name, value in environ.items():
            self._monkeypatch.setenv(name, value)
        try:
            self.outcome.exit_code = cli.main(arguments)
        except SystemExit as exc:
            self.outcome.exit_code = exc.code
        return self.outcome

    def _serve(self, engine_args: Sequence[EngineArgs], config: ServerConfig) -> None:
        self.outcome.served, self.outcome.config = list(engine_args), config

    def _preload(self, engine_args: Sequence[EngineArgs], *, is_drawn: bool) -> None:
        self.outcome.preloaded = list(engine_args)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(monkeypatch)


@pytest.mark.parametrize(
    ("given", "completed"),
    [
        ([], ["v2"]),
        (["--model-id", "a"], ["v2", "--model-id", "a"]),
        (["bogus"], ["v2", "bogus"]),
        (["v1", "--port", "1"], ["v1", "--port", "1"]),
        (["v2"], ["v2"]),
        (["help"], ["--help"]),
        (["help", "v2"], ["v2", "--help"]),
        (["--help"], ["--help"]),
        (["-h"], ["-h"]),
        (["--version"], ["--version"]),
        (["--show-completion"], ["--show-completion"]),
        (["--install-completion"], ["--install-completion"]),
    ],
)
def test_v2_is_inserted_where_the_first_word_is_no_command(given: list[str], completed: list[str]) -> None:
    assert cli.insert_command(given) == completed


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], [{}]),
        (["v2"], [{}]),
        (["--model-id", "a"], [{"model_name_or_path": "a"}]),
        (["v2", "--model-id=a", "--batch-size=4"], [{"model_name_or_path": "a", "batch_size": 4}]),
        (["--model-id", "a", "--served-model-name", "x", "--served-model-name", "y"],
         [{"model_name_or_path": "a", "served_model_name": "x", "served_model_aliases": ("y",)}]),
        (["--model-id", "a", "--model-id", "b", "--dtype", "float32", "--revision", "1", "--revision", "2"],
         [{"model_name_or_path": "a", "dtype": "float32", "revision": "1"},
          {"model_name_or_path": "b", "dtype": "float32", "revision": "2"}]),
        (["--model-id", "a", "--model-id", "b", "--trust-remote-code", "--no-trust-remote-code"],
         [{"model_name_or_path": "a", "trust_remote_code": True},
          {"model_name_or_path": "b", "trust_remote_code": False}]),
        (["--model-id", "a", "--model-id", "b", "--no-model-warmup"],
         [{"model_name_or_path": "a", "model_warmup": False},
          {"model_name_or_path": "b", "model_warmup": False}]),
        (["--trust-remote-code"], [{"trust_remote_code": True}]),
        (["--device-id", "0,1"], [{"device_id": (0, 1)}]),
        (["v1", "--model-name-or-path", "a", "--dtype", "float16"],
         [{"model_name_or_path": "a", "dtype": "float16"}]),
        (["v1", "--no-trust-remote-code", "--lengths-via-tokenize"], [{"lengths_via_tokenize": True}]),
    ],
)  # fmt: skip
def test_flags_of_models_become_engine_args(
    run: CommandLine, arguments: list[str], expected: list[dict[str, Any]]
) -> None:
    outcome = run(*arguments)
    assert outcome.exit_code == 0
    assert outcome.served == [EngineArgs(**values) for values in expected]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {}),
        (["--port", "8080", "--host", "127.0.0.1"], {"port": 8080, "host": "127.0.0.1"}),
        (["--redirect-slash", ""], {"redirect_slash": ""}),
        (["--permissive-cors"], {"permissive_cors": True}),
        (["--no-permissive-cors"], {}),
        (["--port", "1", "--port", "2"], {"port": 2}),
        (["v1", "--api-key", "one", "--url-prefix", "/v1"], {"api_key": ("one",), "url_prefix": "/v1"}),
        (["--api-key", "one", "--api-key", "two"], {"api_key": ("one", "two")}),
        (["v1", "--api-key", "one", "--api-key", ""], {"api_key": ("one",)}),
        (["--api-key-file", "keys"], {"api_key_file": "keys"}),
    ],
)
def test_flags_of_the_server_become_its_config(
    run: CommandLine, arguments: list[str], expected: dict[str, Any]
) -> None:
    outcome = run(*arguments)
    assert outcome.exit_code == 0
    assert outcome.config == ServerConfig(**expected)


def test_every_switch_has_both_spellings_and_may_be_repeated(run: CommandLine) -> None:
    for each in list_options(EngineArgs):
        if isinstance(each.default, bool):
            flag = each.flag.removeprefix("--")
            outcome = run("--model-id", "a", "--model-id", "b", f"--no-{flag}", f"--{flag}")
            assert [getattr(args, each.name) for args in outcome.served] == [False, True], flag


def test_a_flag_counts_before_its_variable_and_that_before_the_default(run: CommandLine) -> None:
    outcome = run(
        "--dtype", "float32", "--port", "1",
        INFINITY_DTYPE="float16", INFINITY_PORT="2", INFINITY_HOST="127.0.0.1", INFINITY_MODEL_ID="a;b",
    )  # fmt: skip
    assert [(args.model_name_or_path, str(args.dtype)) for args in outcome.served] == [
        ("a", "float32"),
        ("b", "float32"),
    ]
    assert outcome.config == ServerConfig(port=1, host="127.0.0.1")


def test_a_key_in_the_environment_is_one_key_and_help_does_not_show_it(
    run: CommandLine, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = run(INFINITY_API_KEY="se;cret,1", INFINITY_API_KEY_FILE="keys")
    assert outcome.config == ServerConfig(api_key=("se;cret,1",), api_key_file="keys")
    run("v2", "--help", "--api-key", "se;cret,2")
    assert "se;cret" not in "".join(capsys.readouterr())


def test_preload_only_loads_and_does_not_serve(run: CommandLine) -> None:
    outcome = run("--preload-only", "--model-id", "a")
    assert outcome.exit_code == 0
    assert outcome.preloaded == [EngineArgs(model_name_or_path="a")]
    assert outcome.served == []


@pytest.mark.parametrize(
    ("arguments", "environ", "message"),
    [
        (["--dtype", "flaot16"], {}, ("error: --dtype must be one of float32, float16, bfloat16,"
         " int16, int8, fp8, auto, got 'flaot16'; did you mean 'float16'?")),
        (["--port", "http"], {}, "error: --port must be an integer, got 'http'"),
        (["--batch-size", "0"], {}, "error: --batch-size must be at least 1, got 0"),
        (["--model-id", "a", "--dtype", "auto", "--dtype", "auto"], {},
         "error: --dtype was given 2 values for 1 models; give one for all, or one per model"),
        ([], {"INFINITY_PORT": "http"}, "error: INFINITY_PORT must be an integer, got 'http'"),
        ([], {"INFINITY_ENGINE": "tocrh"}, ("error: INFINITY_ENGINE must be one of torch, ctranslate2,"
         " optimum, onnx, openvino, neuron, debugengine, auto, got 'tocrh'; did you mean 'torch'?")),
    ],
)  # fmt: skip
def test_a_wrong_value_is_one_line_on_stderr_and_exit_code_1(
    run: CommandLine,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    environ: dict[str, str],
    message: str,
) -> None:
    assert run(*arguments, **environ).exit_code == 1
    assert capsys.readouterr() == ("", f"{message}\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--modle-id", "a"], ["No such option", "--modle-id", "--model-id"]),
        (["v2", "--prot", "1"], ["No such option", "--prot", "--port"]),
        (["bogus"], ["unexpected argument", "bogus", "v2", "verify"]),
        (["--port"], ["--port", "expected one argument"]),
        (["v1", "--model-id", "a"], ["No such option", "--model-id"]),
    ],
)
def test_a_usage_error_names_the_nearest_option_and_has_exit_code_2(
    run: CommandLine, capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    assert run(*arguments).exit_code == 2
    error = capsys.readouterr().err
    assert [word for word in words if word not in error] == []


def test_options_without_effect_are_named_in_one_line(
    run: CommandLine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "infinity_emb")
    run("--no-bettertransformer", INFINITY_LENGTHS_VIA_TOKENIZE="true")
    assert [record.getMessage() for record in caplog.records] == [
        (
            "deprecated options are ignored (infinity_emb v2 --help lists them):"
            " INFINITY_LENGTHS_VIA_TOKENIZE, --bettertransformer"
        )
    ]


def test_an_unknown_variable_is_one_warning_with_the_nearest_name(
    run: CommandLine, caplog: pytest.LogCaptureFixture
) -> None:
    run(INFINITY_MODLE_ID="a", INFINITY_HOME="/tmp", INFINITY_ANONYMOUS_USAGE_STATS="0", DO_NOT_TRACK="1")
    assert [record.getMessage() for record in caplog.records] == [
        "unknown environment variable INFINITY_MODLE_ID; did you mean INFINITY_MODEL_ID?"
    ]


def test_v1_warns_and_names_its_successor(run: CommandLine, caplog: pytest.LogCaptureFixture) -> None:
    run("v1")
    assert [record.getMessage() for record in caplog.records] == [
        "v1 is deprecated; use v2, with --model-id in place of --model-name-or-path"
    ]


def test_version_prints_the_version_alone(run: CommandLine, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version").exit_code == 0
    assert capsys.readouterr() == (f"{__version__}\n", "")


def shown_flag(option: Option) -> str:
    return option.flag.replace("--", "--[no-]", 1) if option.kind is bool else option.flag


@pytest.mark.parametrize("columns", [80, 100])
def test_help_shows_every_option_in_full_and_under_its_heading(
    run: CommandLine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert run("v2", "--help").exit_code == 0
    page = capsys.readouterr().out
    assert max(map(len, page.splitlines())) <= columns
    for config in (EngineArgs, ServerConfig):
        for option in list_options(config):
            assert re.search(rf"^  {re.escape(shown_flag(option))}( |$)", page, re.MULTILINE)
            assert option.env == f"INFINITY_{option.key.upper()}" or f"[{option.env}]" in page
    headings = re.findall(r"^([A-Z][^\n]*):$", page, re.MULTILINE)
    assert headings == [
        *("Model", "Computation", "Batches", "Queue", "Cache", "Media"),
        *("Server", "Access", "Connections", "Batch API", "Deprecated, ignored"),
    ]


def test_help_has_one_line_for_most_options(
    run: CommandLine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    run("v2", "--help")
    continued = [line for line in capsys.readouterr().out.splitlines() if line.startswith(" " * 30)]
    assert len(continued) < 20


def test_a_deprecated_name_of_an_option_works_and_is_one_warning(
    run: CommandLine, caplog: pytest.LogCaptureFixture
) -> None:
    outcome = run("--answer-write-timeout-s", "7", INFINITY_ONNX_FILE="a.onnx")
    assert outcome.config == ServerConfig(response_write_timeout_s=7)
    assert outcome.served == [EngineArgs(graph_file="a.onnx")]
    assert [record.getMessage() for record in caplog.records] == [
        "INFINITY_ONNX_FILE is deprecated; use INFINITY_GRAPH_FILE",
        "--answer-write-timeout-s is deprecated; use --response-write-timeout-s",
    ]


def test_a_value_may_begin_with_a_dash(run: CommandLine) -> None:
    assert run("--api-key", "-x", "--api-key=--y").config == ServerConfig(api_key=("-x", "--y"))


@dataclasses.dataclass
class Compared:
    """Stands for a check of `verify`."""

    is_passed: bool


@pytest.mark.parametrize(
    ("outcomes", "exit_code"),
    [
        ({"a": [True, True], "b": [True]}, 0),
        ({"a": [True, False], "b": [True]}, 1),
        ({"a": [], "b": [True]}, 1),
    ],
    ids=["all equal", "one differs", "nothing compared"],
)
def test_verify_compares_each_model_and_its_exit_code_is_that_of_the_worst(
    run: CommandLine,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    outcomes: dict[str, list[bool]],
    exit_code: int,
) -> None:
    asked = []

    def verify(args: EngineArgs, write_line: Callable[[str], None]) -> list[Compared]:
        asked.append((args.model_name_or_path, str(args.dtype)))
        write_line(f"a table of {args.model_name_or_path}")
        return [Compared(is_passed) for is_passed in outcomes[args.model_name_or_path]]

    monkeypatch.setattr("infinity_emb.verify.verify.verify", verify)
    outcome = run("verify", "--model-id", "a", "--model-id", "b", INFINITY_DTYPE="float32")
    assert outcome.exit_code == exit_code
    assert asked == [("a", "float32"), ("b", "float32")]
    assert capsys.readouterr() == ("a table of a\n\na table of b\n", "")


def test_verify_has_the_options_of_a_model_and_none_of_the_server(
    run: CommandLine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run("verify", "--help").exit_code == 0
    page = capsys.readouterr().out
    assert max(map(len, page.splitlines())) <= 80
    assert [option.name for option in list_options(EngineArgs) if shown_flag(option) not in page] == []
    assert run("verify", "--port", "1").exit_code == 2
    assert "No such option: --port" in capsys.readouterr().err


def test_help_alone_lists_the_commands(
    run: CommandLine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert run("help").exit_code == 0
    page = capsys.readouterr().out
    assert re.search(r"^ +v2 +Serve one or more models\.$", page, re.MULTILINE)
    assert re.search(r"^ +verify +Compare models with sentence-transformers\.$", page, re.MULTILINE)
    assert "--version" in page


def _python(code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=CLEAN_ENVIRON | environ,
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_and_wrong_values_import_no_compute_library_and_no_http_library() -> None:
    done = _python(
        "import sys\n"
        "from infinity_emb.cli import main\n"
        "main(['--dtype', 'wrong'])\n"
        "try:\n"
        "    main(['v2', '--help'])\n"
        "except SystemExit:\n"
        "    heavy = ('torch', 'transformers', 'numpy', 'fastapi', 'uvicorn', 'huggingface_hub')\n"
        "    sys.exit(str([name for name in heavy if name in sys.modules]))\n"
    )
    assert done.stderr.splitlines()[1:] == ["[]"]


def test_the_command_line_needs_no_extra() -> None:
    done = _python(
        "import sys\nfor name in ('fastapi', 'uvicorn', 'torch'): sys.modules[name] = None\n"
        "from infinity_emb.cli import main\nsys.exit(main(['--help']))"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: infinity_emb")


def test_completion_knows_the_choices_of_an_option() -> None:
    done = _python(
        "from infinity_emb.cli import main\nmain()",
        _INFINITY_EMB_COMPLETE="complete_bash",
        COMP_WORDS="infinity_emb v2 --dtype floa",
        COMP_CWORD="3",
    )
    assert done.stdout.split() == ["float32", "float16"]


@pytest.mark.parametrize(
    ("words", "index", "expected"),
    [
        ("infinity_emb v", 1, ["v2", "v1", "verify"]),
        ("infinity_emb --vers", 1, ["--version"]),
        ("infinity_emb v2 --no-mod", 2, ["--no-model-warmup"]),
        ("infinity_emb verify --por", 2, []),
        ("infinity_emb --engine debug", 2, ["debugengine"]),
        ("infinity_emb --dtype=bf", 1, ["--dtype=bfloat16"]),
        ("infinity_emb v2 --model-id ", 3, []),
        ("infinity_emb mod", 1, ["models"]),
        ("infinity_emb top http://localhost --o", 3, ["--once"]),
        ("infinity_emb bench localhost --dialect ", 4, ["openai", "tei", "cohere"]),
        ("infinity_emb models ", 2, ["list", "download", "show", "--help"]),
        ("infinity_emb models sh", 2, ["show"]),
        ("infinity_emb models download --r", 3, ["--revision"]),
    ],
)
def test_completion_lists_commands_options_and_choices(words: str, index: int, expected: list[str]) -> None:
    environ = {"COMP_WORDS": words, "COMP_CWORD": str(index)}
    assert completion.list_candidates(build_parser(), environ) == expected


# Sources the script, and calls its function as bash does: one line of candidates for each command line.
BASH_LOOP = """
source "$1"
function=$(complete -p infinity_emb | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
while IFS='|' read -r -a COMP_WORDS; do
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    [ "${COMP_WORDS[-1]}" = - ] && COMP_WORDS[-1]=
    $function infinity_emb
    echo "${COMPREPLY[*]}"
done
"""
# A command line as bash splits it, `-` for an empty word under the cursor → some of what is offered.
BASH_LINES = {
    "infinity_emb|-": "v2 verify models top bench --version --install-completion",
    "infinity_emb|mo": "models",
    "infinity_emb|v2|--model-id|my model|--dtype|floa": "float32 float16",
    "infinity_emb|v2|--dtype|=|bf": "bfloat16",
    "infinity_emb|models|-": "list download show",
    "infinity_emb|top|http|:|//localhost|--on": "--once",
    "infinity_emb|v2|--model-id|-": "",  # bash goes on with files
}


def test_bash_offers_commands_options_and_choices(tmp_path: Path) -> None:
    """bash itself runs the script that `--show-completion` prints."""
    (tmp_path / "completion.sh").write_text(completion.completion_script("bash"))
    program = tmp_path / "infinity_emb"
    code = "from infinity_emb.cli import main; main()"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{code}" "$@"\n')
    program.chmod(0o755)
    done = subprocess.run(
        ["bash", "--norc", "-c", BASH_LOOP, "bash", str(tmp_path / "completion.sh")],
        input="".join(f"{line}\n" for line in BASH_LINES),
        env=CLEAN_ENVIRON | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for line, offered in zip(BASH_LINES, done.stdout.splitlines(), strict=True):
        assert set(BASH_LINES[line].split()) <= set(offered.split()), line
        assert bool(offered) == bool(BASH_LINES[line]), line


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_show_completion_prints_a_script_for_this_program(
    run: CommandLine, capsys: pytest.CaptureFixture[str], shell: str
) -> None:
    assert run("--show-completion", shell).exit_code == 0
    assert f"_INFINITY_EMB_COMPLETE=complete_{shell}" in capsys.readouterr().out


def test_install_completion_writes_the_script_for_the_shell_of_the_user(
    run: CommandLine, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run("--install-completion", HOME=str(tmp_path), SHELL="/bin/bash").exit_code == 0
    [path] = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert str(path) in capsys.readouterr().out
    assert "complete_bash" in path.read_text()
    assert run("--show-completion", SHELL="/bin/tcsh").exit_code == 1
