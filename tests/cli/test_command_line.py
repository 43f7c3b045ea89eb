from __future__ import annotations

import dataclasses
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from infinity_emb import __version__, cli
from infinity_emb.cli import commands
from infinity_emb.config import EngineArgs, ServerConfig
from infinity_emb.options import (
    env_name,
    flag_name,
    option_fields,
)

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

    def _preload(self, engine_args: Sequence[EngineArgs]) -> None:
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
    for each in option_fields(EngineArgs):
        if isinstance(each.default, bool):
            flag = flag_name(each)
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
        (["--dtype", "flaot16"], {}, "error: --dtype 'flaot16' is not one of float32, float16, bfloat16,"
         " int16, int8, fp8, auto; did you mean 'float16'?"),
        (["--port", "http"], {}, "error: --port 'http' is not a whole number"),
        (["--batch-size", "0"], {}, "error: --batch-size 0 is under the limit of 1"),
        (["--model-id", "a", "--dtype", "auto", "--dtype", "auto"], {},
         "error: --dtype was given 2 values for 1 models; give one for all, or one per model"),
        ([], {"INFINITY_PORT": "http"}, "error: INFINITY_PORT 'http' is not a whole number"),
        ([], {"INFINITY_ENGINE": "tocrh"}, "error: INFINITY_ENGINE 'tocrh' is not one of torch, ctranslate2,"
         " optimum, onnx, openvino, neuron, debugengine, auto; did you mean 'torch'?"),
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
        (["bogus"], ["unexpected extra argument", "bogus"]),
        (["--port"], ["--port", "requires an argument"]),
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
    run("--compile", "--no-bettertransformer", INFINITY_LENGTHS_VIA_TOKENIZE="true")
    assert [record.getMessage() for record in caplog.records] == [
        "accepted without effect, see docs/settings.md:"
        " INFINITY_LENGTHS_VIA_TOKENIZE, --compile, --bettertransformer"
    ]


def test_an_unknown_variable_is_one_warning_with_the_nearest_name(
    run: CommandLine, caplog: pytest.LogCaptureFixture
) -> None:
    run(INFINITY_MODLE_ID="a", INFINITY_HOME="/tmp", INFINITY_ANONYMOUS_USAGE_STATS="0", DO_NOT_TRACK="1")
    assert [record.getMessage() for record in caplog.records] == [
        "the environment variable INFINITY_MODLE_ID is no option; did you mean INFINITY_MODEL_ID?"
    ]


def test_v1_warns_and_names_its_successor(run: CommandLine, caplog: pytest.LogCaptureFixture) -> None:
    run("v1")
    assert [record.getMessage() for record in caplog.records] == [
        "v1 is deprecated; use v2, with --model-id in place of --model-name-or-path"
    ]


def test_version_prints_the_version_alone(run: CommandLine, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version").exit_code == 0
    assert capsys.readouterr() == (f"{__version__}\n", "")


def test_help_shows_every_option_in_full_at_80_columns(
    run: CommandLine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run("v2", "--help").exit_code == 0
    page = capsys.readouterr().out
    assert max(map(len, page.splitlines())) <= 80
    for config in (EngineArgs, ServerConfig):
        for each in option_fields(config):
            assert f"--{flag_name(each)} " in page
            assert env_name(each) in page
    headings = [line for line in page.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["Model:", "Server:", "Without effect, accepted for old command lines:", "Help:"]


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

    def verify(args: EngineArgs, tell: Callable[[str], None]) -> list[Compared]:
        asked.append((args.model_name_or_path, str(args.dtype)))
        tell(f"a table of {args.model_name_or_path}")
        return [Compared(is_passed) for is_passed in outcomes[args.model_name_or_path]]

    monkeypatch.setattr("infinity_emb.verification.verify", verify)
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
    assert [each.name for each in option_fields(EngineArgs) if f"--{flag_name(each)} " not in page] == []
    assert run("verify", "--port", "1").exit_code == 2
    assert "No such option: --port" in capsys.readouterr().err


def test_help_alone_lists_the_commands(run: CommandLine, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("help").exit_code == 0
    page = capsys.readouterr().out
    assert "v2      Serve one or more models." in page
    assert "verify  Compare served models with sentence-transformers." in page
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


def test_a_missing_extra_is_one_line_that_names_it() -> None:
    done = _python(
        "import sys\nsys.modules['typer'] = None\n"
        "from infinity_emb.cli import main\nsys.exit(main(['--help']))"
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: infinity_emb needs a package that is not installed (")
    assert done.stderr.endswith("install it with: pip install 'infinity-emb[server]'\n")
    assert done.stderr.count("\n") == 1


def test_completion_knows_the_choices_of_an_option() -> None:
    done = _python(
        "from infinity_emb.cli import main\nmain()",
        _INFINITY_EMB_COMPLETE="complete_bash",
        COMP_WORDS="infinity_emb v2 --dtype floa",
        COMP_CWORD="3",
    )
    assert done.stdout.split() == ["float32", "float16"]


def test_show_completion_prints_a_script_for_this_program() -> None:
    # The variable makes typer take the shell as a value, for a test has no shell around it.
    done = _python(
        "import sys\nfrom infinity_emb.cli import main\nmain(['--show-completion', 'bash'])",
        _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1",
    )
    assert done.returncode == 0, done.stderr
    assert "_INFINITY_EMB_COMPLETE=complete_bash" in done.stdout
