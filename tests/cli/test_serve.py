"""The server in a separate process: start, requests, stop."""

from __future__ import annotations

import concurrent.futures
import gc
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from infinity_emb.cli.serve import GC_THRESHOLDS
from tests.support.server_process import CLEAN_ENVIRON, COMMAND, DEADLINE_S, FAKE, StartServer, run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_lets_a_request_in_flight_finish_and_the_exit_code_is_0(
    serve: StartServer, pool: concurrent.futures.ThreadPoolExecutor, number: signal.Signals
) -> None:
    server = serve("v2", *FAKE, "--model-id", "debug?delay_s=1")
    answer = pool.submit(server.embed)
    server.wait_for_pending(1)
    exit_code, rest = server.stop(number)
    assert answer.result().status_code == 200
    assert exit_code == 0
    assert "Traceback" not in rest
    assert [line.partition("infinity_emb: ")[2].partition(":")[0] for line in rest.splitlines()] == [
        "stopping",
        "stopped",
    ]


def test_signals_of_users_do_not_end_the_server(serve: StartServer) -> None:
    server = serve(*FAKE)
    server.process.send_signal(signal.SIGUSR2)
    server.process.send_signal(signal.SIGUSR1)
    server.wait_for_line("state dump (SIGUSR1)")
    assert server.embed().status_code == 200
    assert server.stop(signal.SIGTERM)[0] == 0


def test_a_server_started_with_nohup_outlives_its_terminal(start_server: StartServer) -> None:
    server = start_server(*FAKE, command=["nohup", *COMMAND])
    server.url = server.wait_for_line("listening on ").partition("listening on ")[2].partition(",")[0]
    server.process.send_signal(signal.SIGHUP)
    assert server.embed().status_code == 200
    assert server.stop(signal.SIGTERM)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "is_told"),
    [
        (["--host", "0.0.0.0"], True),
        (["--host", "0.0.0.0", "--api-key", "secret"], False),
        (["--host", "127.0.0.1"], False),
        (["--host", "localhost"], False),
    ],
)
def test_an_open_server_says_so(serve: StartServer, arguments: list[str], is_told: bool) -> None:
    server = serve(*FAKE, *arguments)
    told = [line for line in server.lines if "no API key is set" in line]
    assert len(told) == is_told
    assert server.stop(signal.SIGTERM)[0] == 0


@pytest.mark.parametrize("name", ["INFINITY_API_KEY", "INFINITY_API_KEY_FILE"])
def test_an_empty_key_stops_the_start(name: str) -> None:
    done = run(*FAKE, **{name: ""})
    assert done.returncode == 1
    assert done.stderr == f"error: {name} is empty; set it, or leave it out to serve without a key\n"


def test_the_document_is_made_before_the_server_listens(start_server: StartServer) -> None:
    """It took the event loop for half a second at the first request for it."""
    notes_when = (
        "import sys\n"
        "from infinity_emb.cli import main, serve\n"
        "from infinity_emb.server.app import ServerApp\n"
        "make, listen = ServerApp.openapi, serve.listen\n"
        "def noting(self):\n"
        "    print('document made', file=sys.stderr)\n"
        "    return make(self)\n"
        "def listening(*args):\n"
        "    print('begins to listen', file=sys.stderr)\n"
        "    listen(*args)\n"
        "ServerApp.openapi, serve.listen = noting, listening\n"
        "sys.exit(main())\n"
    )
    server = start_server(*FAKE, command=[sys.executable, "-c", notes_when])
    server.wait_for_line("begins to listen")
    assert "document made\n" in server.lines


def test_after_the_deadline_waiting_requests_are_told_and_the_exit_code_is_0(
    serve: StartServer, pool: concurrent.futures.ThreadPoolExecutor
) -> None:
    server = serve(
        *FAKE, "--model-id", "debug?delay_s=1", "--batch-size", "1", "--shutdown-timeout-s", "0"
    )  # fmt: skip
    first = pool.submit(server.embed)
    server.wait_for_pending(1)
    waiting = [pool.submit(server.embed) for _ in range(5)]
    server.wait_for_pending(6)
    exit_code, rest = server.stop(signal.SIGTERM)
    assert first.result().status_code == 200
    refused = [answer.result() for answer in waiting if answer.result().status_code == 503]
    assert refused
    assert "shutting down" in refused[0].json()["error"]["message"]
    assert exit_code == 0
    assert "Traceback" not in rest


def test_a_second_ctrl_c_quits_at_once(
    serve: StartServer, pool: concurrent.futures.ThreadPoolExecutor
) -> None:
    server = serve(*FAKE, "--model-id", f"debug?delay_s={10 * DEADLINE_S}")
    answer = pool.submit(server.embed)
    server.wait_for_pending(1)
    server.process.send_signal(signal.SIGINT)
    server.wait_for_line("stopping: ")
    exit_code, rest = server.stop(signal.SIGINT)
    assert exit_code == 130
    assert rest == "exiting at once; accepted requests are lost\n"
    assert isinstance(answer.exception(), httpx.TransportError)


def test_no_key_is_ever_written_to_the_log(serve: StartServer, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("secret-file\n")
    server = serve(
        *FAKE, "--log-level", "trace", "--api-key", "secret-flag", "--api-key-file", str(path)
    )  # fmt: skip
    statuses = []
    for key in ("secret-flag", "secret-file", "secret-wrong"):
        for headers in ({"Authorization": f"Bearer {key}"}, {"Authorization": key}, {"api-key": key}):
            for method, route in (("GET", "models"), ("POST", "embeddings"), ("POST", "embed")):
                answer = httpx.request(
                    method, f"{server.url}/{route}", headers=headers, timeout=DEADLINE_S, verify=False
                )
                assert "secret" not in answer.text
                statuses.append(answer.status_code)
    assert statuses == [200, 422, 422] * 6 + [401] * 9
    _, rest = server.stop(signal.SIGTERM)
    log = "".join(server.lines) + rest
    assert "GET /models" in log
    assert "secret" not in log


def test_a_key_file_without_a_key_stops_the_start_before_a_model_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# none\n")
    done = run(*FAKE, "--model-id", "debug?no_such_fault=1", INFINITY_API_KEY_FILE=str(path))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"error: --api-key-file '{path}' has no key; write one per line"
    assert "loading" not in done.stderr


@pytest.mark.parametrize(
    ("number", "exit_code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGQUIT, 131)],
)
def test_a_signal_while_models_load_quits_at_once_with_one_line(
    start_server: StartServer, number: signal.Signals, exit_code: int
) -> None:
    """A loading library that swallows exceptions must not keep the process."""
    never_loads = (
        "import sys, threading\n"
        "from infinity_emb.backends import fake\n"
        "from infinity_emb.cli import main\n"
        "def load_model(args, files):\n"
        "    while True:\n"
        "        try:\n"
        "            print('still loading', file=sys.stderr, flush=True)\n"
        "            threading.Event().wait()\n"
        "        except BaseException:\n"
        "            pass\n"
        "fake.load_model = load_model\n"
        "sys.exit(main())\n"
    )
    server = start_server(*FAKE, command=[sys.executable, "-c", never_loads])
    server.wait_for_line("still loading")
    for harmless in (signal.SIGUSR1, signal.SIGUSR2):
        server.process.send_signal(harmless)
    assert server.stop(number) == (exit_code, "stopped before the server was ready\n")


@pytest.mark.parametrize(
    ("arguments", "environ"),
    [
        (["--model-id=org/a", "--model-id=org/b", "--served-model-name=a", "--served-model-name=b"], {}),
        ([], {"INFINITY_MODEL_ID": "org/a;org/b", "INFINITY_SERVED_MODEL_NAME": "a;b"}),
    ],
    ids=["flags", "variables"],
)  # fmt: skip
def test_two_models_are_served_from_flags_and_from_variables(
    serve: StartServer, arguments: list[str], environ: dict[str, str]
) -> None:
    server = serve(*FAKE, *arguments, **environ)
    described = [line for line in server.lines if "infinity_emb: model " in line]
    assert ["model 'a': embedder" in described[0], "model 'b': embedder" in described[1]] == [True, True]
    assert sum(", device cpu" in line for line in server.lines) == 2
    assert [entry["id"] for entry in httpx.get(f"{server.url}/models").json()["data"]] == ["a", "b"]
    answer = httpx.post(f"{server.url}/embeddings", json={"input": "four", "model": "b"}).json()
    assert answer["model"] == "b"
    assert answer["data"][0]["embedding"] == [4.0] * 13
    assert server.stop(signal.SIGTERM)[0] == 0


def test_several_names_of_one_model_are_aliases_and_requests_are_logged_at_debug(serve: StartServer) -> None:
    server = serve(
        *FAKE, "--served-model-name", "a", "--served-model-name", "b", "--log-level", "debug"
    )  # fmt: skip
    for name in ("a", "b"):
        body = {"input": "four", "model": name}
        assert httpx.post(f"{server.url}/embeddings", json=body).status_code == 200
    _, rest = server.stop(signal.SIGTERM)
    assert rest.count('"POST /embeddings HTTP/1.1" 200') == 2


def test_docs_are_where_the_log_says(serve: StartServer) -> None:
    server = serve(*FAKE, "--url-prefix", "/api")
    docs_url = server.lines[-1].partition("docs at ")[2].partition(",")[0]
    assert docs_url == f"{server.url}/api/docs"
    assert httpx.get(docs_url).status_code == 200
    assert server.stop(signal.SIGINT)[0] == 0


def test_a_port_in_use_is_told_before_any_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("--engine", "debugengine", "--host", "127.0.0.1", "--port", str(port))
    assert done.returncode == 1
    assert done.stderr == f"error: port {port} is in use on 127.0.0.1; choose another with --port\n"


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (["--dtype", "flaot16"], 1, "error: --dtype must be one of"),
        (
            ["--engine", "neuron", "--port", "0"],
            1,
            "error: --engine neuron is not available in this version",
        ),
        ([*FAKE, "--model-id", "debug?typo=1"], 1, "error: debugengine has no fault ['typo']"),
        (["--modle-id", "a"], 2, "--modle-id"),
    ],
)
def test_a_start_that_cannot_succeed_says_why_without_a_traceback(
    arguments: list[str], exit_code: int, words: str
) -> None:
    done = run("v2", *arguments)
    assert done.returncode == exit_code
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_preload_only_loads_without_listening_and_exits_with_0() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run("--engine", "debugengine", "--host", "127.0.0.1", "--port", port, "--preload-only")
    assert done.returncode == 0
    assert "all models loaded; exiting (--preload-only)" in done.stderr
    assert "listening" not in done.stderr


def test_a_missing_server_package_is_told_before_any_model_is_loaded() -> None:
    code = (
        "import sys; sys.modules['fastapi'] = None\n"
        "from infinity_emb.cli import main\n"
        "sys.exit(main(['--engine', 'debugengine', '--host', '127.0.0.1', '--port', '0']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=CLEAN_ENVIRON, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "pip install 'infinity-emb[server]'" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="several front ends need Linux")
def test_the_sockets_of_front_ends_that_are_chosen_after_the_load_are_closed() -> None:
    """Only the socket of before was closed."""
    code = (
        "from infinity_emb.cli import serve\n"
        "from infinity_emb.config.engine_args import EngineArgs\n"
        "from infinity_emb.config.server_config import ServerConfig\n"
        "groups = []\n"
        "serve.choose_front_ends = lambda *_: 2\n"
        "serve._serve_with_front_ends = lambda *arguments: groups.extend(arguments[2])\n"
        "args = EngineArgs(model_name_or_path='debug', engine='debugengine')\n"
        "serve.serve([args], ServerConfig(host='127.0.0.1', port=0, api_servers='auto'))\n"
        "print([bound.fileno() for group in groups for bound in group])\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env=CLEAN_ENVIRON, capture_output=True, text=True, check=False, timeout=DEADLINE_S
    )
    assert (done.stdout, done.returncode) == ("[-1, -1]\n", 0), done.stderr


def test_a_server_in_the_locale_c_answers_by_a_name_of_other_letters(serve: StartServer) -> None:
    """It was ready, and every response a 500: Python had read the bytes of the name as no characters."""
    locale_c = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    server = serve("v2", *FAKE, "--model-id", "./möbel?kind=embedder", **locale_c)
    answer = server.embed()
    assert (answer.status_code, answer.json()["model"]) == (200, "möbel?kind=embedder")
    for path in ("/models", "/info", "/metrics", "/models/möbel?kind=embedder"):
        assert httpx.get(server.url + path.replace("?", "%3F")).status_code == 200, path


def test_the_objects_of_thousands_of_requests_cause_no_full_collection() -> None:
    """Each blocked the event loop for 0.2 s, every few seconds."""
    before = gc.get_threshold()
    gc.collect()
    num_before = gc.get_stats()[2]["collections"]
    try:
        gc.set_threshold(*GC_THRESHOLDS)
        waiting = [[[number]] for number in range(200_000)]
        num_after = gc.get_stats()[2]["collections"]
    finally:
        gc.set_threshold(*before)
    assert len(waiting) == 200_000
    assert num_after == num_before
