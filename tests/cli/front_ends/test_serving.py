"""A server with two front ends: answers, metrics, failures of each process, and stops."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from tests.cli.front_ends.conftest import NUM_FRONT_ENDS, FrontEndServer, StartFrontEnds, wait_until
from tests.support.server_process import DEADLINE_S, FAKE, Server, run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="front ends are forked")

KINDS = ["embedder", "reranker", "classifier"]
MODELS = [word for kind in KINDS for word in ("--model-id", f"debug?kind={kind}&fail_on=poison",
                                               "--served-model-name", kind)]  # fmt: skip
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("/embeddings", {"model": "embedder", "input": ["a", "bb", "a"]}),
    ("/embeddings", {"model": "embedder", "input": "abc", "encoding_format": "base64", "dimensions": 4}),
    ("/embeddings", {"model": "embedder", "input": [f"text {'x' * n}" for n in range(300)]}),
    ("/embed_sparse", {"inputs": ["aab"]}),
    ("/rerank", {"model": "reranker", "query": "q", "documents": ["a", "bbb", "cc"]}),
    ("/rerank", {"model": "embedder", "query": "q", "documents": ["a", "bbb", "cc"]}),
    ("/classify", {"model": "classifier", "input": ["a", "bb"]}),
    ("/embeddings", {"model": "embedder", "input": ["fine", "poison"]}),
    ("/embeddings", {"model": "embedder", "input": ["a" * 9000], "truncate": False}),
    ("/embeddings", {"model": "embedder", "input": "a", "dimensions": 99}),
    ("/embeddings", {"model": "nobody", "input": "a"}),
    ("/embeddings", {"model": "embedder", "input": []}),
    ("/embeddings", {"model": "classifier", "input": "a"}),
]


@pytest.fixture(scope="module")
def pool() -> Iterator[concurrent.futures.ThreadPoolExecutor]:
    with concurrent.futures.ThreadPoolExecutor(32) as executor:
        yield executor


def post(url: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    """Return the status and the body, without what differs from one request to the next."""
    answer = httpx.post(url + path, content=json.dumps(body), timeout=DEADLINE_S, verify=False)
    content = answer.json()
    if isinstance(content, dict):
        content = {name: value for name, value in content.items() if name not in ("id", "created")}
    return answer.status_code, content


def read_metric(server: Server, name: str) -> float:
    """Return the sum of the samples of this name."""
    text = httpx.get(f"{server.url}/metrics", timeout=DEADLINE_S, verify=False).text
    lines = [line for line in text.splitlines() if line.partition("{")[0].partition(" ")[0] == name]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def test_answers_are_those_of_one_process(start: StartFrontEnds) -> None:
    alone = Server("v2", *FAKE, *MODELS)
    try:
        alone.wait_until_listening()
        server = start(*MODELS[1:])
        for path, body in REQUESTS:
            expected = post(alone.url, path, body)
            for _ in range(2):  # of different connections, so mostly of different front ends
                assert post(server.url, path, body) == expected
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert httpx.get(f"{server.url}/ready").status_code == 200
        assert [each["id"] for each in httpx.get(f"{server.url}/models").json()["data"]] == KINDS
    finally:
        alone.kill()


def test_vectors_of_a_torch_model_are_those_of_one_process() -> None:
    """Its tokenizer runs on threads of the front ends, which are forks of a process that has used torch."""
    options = ["v2", "--host", "127.0.0.1", "--port", "0", "--device", "cpu", "--max-batch-tokens", "1024"]
    servers = [Server(*options), FrontEndServer(*options, "--api-servers", "2")]
    body = {"model": "", "input": ["short", "long text " * 400, *(f"text {'x ' * n}" for n in range(100))]}
    try:
        urls = [server.wait_until_listening().url for server in servers]
        expected, *others = (post(url, "/embeddings", body) for url in (*urls, urls[1], urls[1]))
        vectors = np.array([each["embedding"] for each in expected[1]["data"]])
        for status, content in others:
            assert status == expected[0] == 200
            assert content["usage"] == expected[1]["usage"]
            got = np.array([each["embedding"] for each in content["data"]])
            np.testing.assert_allclose(got, vectors, atol=1e-5)
    finally:
        for server in servers:
            server.kill()


def test_metrics_are_those_of_all_processes_and_never_decrease(start: StartFrontEnds) -> None:
    server = start()
    for _ in range(20):
        assert server.embed().status_code == 200
    for _ in range(3):  # whichever front end is asked
        assert read_metric(server, "infinity_items_total") == 20
        assert read_metric(server, "infinity_encode_seconds_count") == 20
        assert read_metric(server, "infinity_requests_total") == 20
    victim = server.list_front_ends()[0]
    victim.kill()
    wait_until(
        lambda: len(server.list_front_ends()) == NUM_FRONT_ENDS and victim not in server.list_front_ends()
    )
    assert read_metric(server, "infinity_requests_total") == 20


def test_a_result_that_one_front_end_has_cached_on_disk_is_found_by_the_other(tmp_path: Path) -> None:
    options = ["--vector-disk-cache", "--vector-memory-cache-mb", "4", "--api-servers", "2"]
    server = FrontEndServer("v2", *FAKE, "--model-id", "debug", *options, INFINITY_HOME=str(tmp_path))
    try:
        url = server.wait_until_listening().url
        body = {"input": ["cached once", "and found often"]}
        expected = post(url, "/embeddings", body)
        assert expected[0] == 200
        wait_until(lambda: read_metric(server, "infinity_cache_disk_bytes") > 0)
        time.sleep(1)  # results are written together, a moment later
        for _ in range(20):
            assert post(url, "/embeddings", body) == expected
        assert read_metric(server, "infinity_cache_misses_total") == 2
        hits = [read_metric(server, f"infinity_cache_{tier}_hits_total") for tier in ("memory", "disk")]
        assert sum(hits) == 40
        assert hits[1] == 2  # the front end that had not computed them
        assert read_metric(server, "infinity_items_total") == 2
    finally:
        server.kill()


def test_work_of_a_client_that_disconnects_is_dropped(start: StartFrontEnds) -> None:
    server = start("debug?delay_s=0.3", "--batch-size", "1")
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/embeddings", json={"input": [f"{n}" for n in range(50)]}, timeout=1)
    wait_until(lambda: read_metric(server, "infinity_items_skipped_total") > 30)
    assert read_metric(server, "infinity_pending_requests") == 0
    assert read_metric(server, "infinity_requests_disconnected_total") == 1


def test_a_front_end_that_is_killed_under_load_is_replaced_and_others_lose_nothing(
    start: StartFrontEnds, pool: concurrent.futures.ThreadPoolExecutor
) -> None:
    server = start("debug?delay_s=0.01")
    victim, survivor = server.list_front_ends()
    is_over = threading.Event()
    outcomes: list[int | str] = []
    connected: list[int] = []

    def load() -> None:
        """Send requests over one connection, which one front end serves, until the end or its loss."""
        with httpx.Client(timeout=DEADLINE_S) as client:
            connected.append(client.get(f"{server.url}/models").status_code)
            while not is_over.is_set():
                try:
                    outcomes.append(client.post(f"{server.url}/embeddings", json={"input": "a"}).status_code)
                except httpx.TransportError as exc:
                    outcomes.append(type(exc).__name__)
                    return

    loads = [pool.submit(load) for _ in range(16)]
    wait_until(lambda: len(connected) == len(loads) and len(outcomes) > 50)
    num_to_victim = count_connections(victim, server)
    assert 0 < num_to_victim < 16
    victim.kill()
    server.wait_for_line("has ended; starting another")
    before = len(outcomes)
    wait_until(lambda: len(outcomes) > before + 50)
    is_over.set()
    for each in loads:
        each.result(DEADLINE_S)
    assert set(outcomes) - {200} <= {"RemoteProtocolError", "ReadError", "WriteError"}
    assert len([each for each in outcomes if each != 200]) == num_to_victim
    wait_until(lambda: len(server.list_front_ends()) == NUM_FRONT_ENDS)
    assert survivor in server.list_front_ends()
    assert [server.embed().status_code for _ in range(10)] == [200] * 10
    assert server.stop(signal.SIGTERM)[0] == 0


def test_a_front_end_that_hangs_is_killed_and_replaced() -> None:
    program = (
        "import sys; from infinity_emb.cli.front_ends import supervisor; supervisor.TICK_S = 0.2;"
        " from infinity_emb.cli import main; sys.exit(main())"
    )
    options = ["v2", *FAKE, "--model-id", "debug", "--api-servers", "2"]
    server = FrontEndServer(*options, command=[sys.executable, "-c", program])
    try:
        server.wait_until_listening()
        before = server.list_front_ends()
        before[0].send_signal(signal.SIGSTOP)
        server.wait_for_line(f"front end with pid {before[0].pid} does not answer; killing it")
        wait_until(lambda: len(server.list_front_ends()) == 2 and before[0] not in server.list_front_ends())
        assert before[1] in server.list_front_ends()
        for _ in range(10):
            assert server.embed().status_code == 200
    finally:
        server.kill()


# One front end hangs in its start.
HANG_ONCE = """
import os, sys, time
from infinity_emb.cli.front_ends import front_end, supervisor
supervisor.TICK_S = 0.5
def hang_once():
    try:
        os.mkdir(sys.argv[-1])
    except FileExistsError:
        return
    time.sleep(1000)
front_end.use_one_thread = hang_once
from infinity_emb.cli import main
sys.exit(main(sys.argv[1:-1]))
"""
# The third front end, which replaces another, cannot be started at once.
FAIL_ONCE = """
import itertools, sys
from infinity_emb.cli.front_ends import supervisor
supervisor.TICK_S = 0.5
start, numbers = supervisor.ForkServer.start, itertools.count(1)
def fail_once(self, number):
    if next(numbers) == 3:
        raise OSError(24, "Too many open files")
    return start(self, number)
supervisor.ForkServer.start = fail_once
from infinity_emb.cli import main
sys.exit(main())
"""


def test_a_front_end_that_hangs_before_it_is_ready_is_killed_and_replaced(tmp_path: Path) -> None:
    options = ["v2", *FAKE, "--model-id", "debug", "--api-servers", "2", str(tmp_path / "has hung")]
    server = FrontEndServer(*options, command=[sys.executable, "-c", HANG_ONCE])
    try:
        line = server.wait_for_line("does not answer; killing it")
        hung = int(line.split("front end with pid ")[1].split()[0])
        server.wait_until_listening()
        assert hung not in [each.pid for each in server.list_front_ends()]
        for _ in range(10):
            assert server.embed().status_code == 200
    finally:
        server.kill()


def test_a_front_end_that_cannot_be_replaced_at_once_is_replaced_later() -> None:
    options = ["v2", *FAKE, "--model-id", "debug", "--api-servers", "2"]
    server = FrontEndServer(*options, command=[sys.executable, "-c", FAIL_ONCE])
    try:
        server.wait_until_listening()
        killed = server.list_front_ends()[0]
        killed.kill()
        server.wait_for_line("cannot be started now: [Errno 24] Too many open files")
        wait_until(lambda: len(server.list_front_ends()) == 2 and killed not in server.list_front_ends())
        assert httpx.get(f"{server.url}/metrics", timeout=DEADLINE_S, verify=False).status_code == 200
        assert server.stop(signal.SIGTERM)[0] == 0
    finally:
        server.kill()


def count_connections(process: psutil.Process, server: Server) -> int:
    port = int(server.url.rpartition(":")[2])
    return sum(
        each.status == psutil.CONN_ESTABLISHED and each.laddr.port == port
        for each in process.net_connections("tcp")
    )


def test_requests_of_an_engine_process_that_is_killed_get_its_error_and_all_processes_end(
    start: StartFrontEnds, pool: concurrent.futures.ThreadPoolExecutor
) -> None:
    server = start(f"debug?delay_s={DEADLINE_S}")
    processes = server.list_processes()
    waiting = [pool.submit(server.embed) for _ in range(8)]
    server.wait_for_pending(8)
    server.process.kill()
    for each in waiting:
        answer = each.result(DEADLINE_S)
        assert answer.status_code == 503
        assert "the engine process has ended" in answer.json()["error"]["message"]
    _, alive = psutil.wait_procs(processes, timeout=DEADLINE_S)
    assert not alive


def test_a_lost_device_fails_its_requests_and_ends_the_server_with_code_1(start: StartFrontEnds) -> None:
    server = start("debug?hang_on=poison", "--batch-timeout-s", "1")
    processes = server.list_processes()
    answer = server.embed("poison")
    assert answer.status_code == 503
    assert "restart the server" in answer.json()["error"]["message"]
    exit_code = server.process.wait(DEADLINE_S)
    assert exit_code == 1
    _, alive = psutil.wait_procs(processes, timeout=DEADLINE_S)
    assert not alive


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_requests_in_flight_finish_and_closes_the_port(
    start: StartFrontEnds, pool: concurrent.futures.ThreadPoolExecutor, number: signal.Signals
) -> None:
    server = start("debug?delay_s=2", "--batch-size", "1")
    processes = server.list_processes()
    waiting = [pool.submit(server.embed) for _ in range(2)]
    server.wait_for_pending(2)
    server.process.send_signal(number)
    server.wait_for_line("stopping: ")
    wait_until(lambda: is_refused(server))
    assert [each.result(DEADLINE_S).status_code for each in waiting] == [200, 200]
    exit_code, rest = server.stop()
    assert exit_code == 0
    assert "Traceback" not in rest
    assert rest.count("stopped") == 1
    _, alive = psutil.wait_procs(processes, timeout=DEADLINE_S)
    assert not alive


def is_refused(server: FrontEndServer) -> bool:
    try:
        httpx.get(f"{server.url}/health", timeout=1)
    except httpx.ConnectError:
        return True
    except httpx.TransportError:
        return False
    return False


def test_a_second_ctrl_c_ends_all_processes_at_once(
    start: StartFrontEnds, pool: concurrent.futures.ThreadPoolExecutor
) -> None:
    server = start(f"debug?delay_s={10 * DEADLINE_S}")
    processes = server.list_processes()
    answer = pool.submit(server.embed)
    server.wait_for_pending(1)
    server.process.send_signal(signal.SIGINT)
    server.wait_for_line("stopping: ")
    assert server.stop(signal.SIGINT)[0] == 130
    _, alive = psutil.wait_procs(processes, timeout=DEADLINE_S)
    assert not alive
    assert answer.exception(DEADLINE_S) or answer.result().status_code == 503


def test_the_state_dump_has_every_process(start: StartFrontEnds) -> None:
    server = start()
    server.process.send_signal(signal.SIGUSR1)
    server.wait_for_line("state dump (SIGUSR1)")
    for _ in range(NUM_FRONT_ENDS):
        server.wait_for_line("state of the front end ")
    assert server.stop(signal.SIGTERM)[0] == 0


def test_a_taken_port_is_reported_by_every_number_of_front_ends(start: StartFrontEnds) -> None:
    server = start()
    port = server.url.rpartition(":")[2]
    for number in ("1", "2"):
        done = run(*FAKE[:-1], port, "--api-servers", number)
        assert done.returncode == 1
        assert f"port {port} is in use" in done.stderr
