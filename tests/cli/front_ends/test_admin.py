"""Models that are loaded, unloaded and reloaded while several front ends serve."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from typing import Any

import httpx

from tests.cli.front_ends.conftest import NUM_FRONT_ENDS, FrontEndServer, StartFrontEnds, wait_until
from tests.support.server_process import DEADLINE_S, Server

KEY = "key-of-an-administrator"
HEADERS = {"authorization": f"Bearer {KEY}"}
# Each request has a connection of its own, so these reach every front end.
MANY = 12


def load(server: Server, model: str = "other", **options: Any) -> httpx.Response:
    body = {"model_id": model, "engine": "debugengine", **options}
    return httpx.post(
        f"{server.url}/admin/models", json=body, headers=HEADERS, timeout=DEADLINE_S, verify=False
    )


def unload(server: Server, name: str) -> httpx.Response:
    return httpx.delete(
        f"{server.url}/admin/models/{name}", headers=HEADERS, timeout=DEADLINE_S, verify=False
    )


def embed(server: Server, model: str | None, text: str = "abc") -> httpx.Response:
    body = {"input": text} | ({} if model is None else {"model": model})
    return httpx.post(f"{server.url}/embeddings", json=body, timeout=DEADLINE_S, verify=False)


def list_names(server: Server) -> list[str]:
    return [
        entry["id"]
        for entry in httpx.get(f"{server.url}/models", timeout=DEADLINE_S, verify=False).json()["data"]
    ]


def test_a_model_is_loaded_while_requests_flow_and_every_front_end_serves_it(start: StartFrontEnds) -> None:
    server = start("debug?dimension=5", "--admin-key", KEY, "--served-model-name", "first")
    is_over = threading.Event()
    outcomes: list[tuple[int, int]] = []

    def send_requests() -> None:
        with httpx.Client(timeout=DEADLINE_S) as client:
            while not is_over.is_set():
                answer = client.post(f"{server.url}/embeddings", json={"input": "abc", "model": "first"})
                outcomes.append((answer.status_code, len(answer.json()["data"][0]["embedding"])))

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        senders = [pool.submit(send_requests) for _ in range(8)]
        try:
            wait_until(lambda: len(outcomes) > 20)
            options = {"served_model_name": "second,another name"}
            loaded = load(server, "debug?dimension=7", **options)
            assert (loaded.status_code, loaded.json()["id"]) == (200, "second")
            for name in ["second", "another name"] * (MANY // 2):
                answer = embed(server, name)
                assert (answer.status_code, len(answer.json()["data"][0]["embedding"])) == (200, 7)
                assert list_names(server) == ["first", "second"]
            before = len(outcomes)
            wait_until(lambda: len(outcomes) > before + 20)
        finally:
            is_over.set()
        for sender in senders:
            sender.result(DEADLINE_S)
    assert set(outcomes) == {(200, 5)}


def test_names_and_the_default_model_follow_what_is_served(start: StartFrontEnds) -> None:
    server = start("debug", "--admin-key", KEY, "--served-model-name", "first")
    assert {embed(server, name).status_code for name in ("first", "any name", None)} == {200}
    assert load(server, served_model_name="second").status_code == 200
    for _ in range(MANY):
        assert embed(server, "any name").status_code == 404  # two models: no longer
        assert embed(server, None).status_code == 400  # which of the two?
    assert unload(server, "first").status_code == 200
    for _ in range(MANY):
        assert list_names(server) == ["second"]
        assert {embed(server, name).status_code for name in ("second", "first", None)} == {200}
    assert load(server, "third").status_code == 200
    assert embed(server, "first").status_code == 404
    assert load(server, "third").status_code == 409


def test_a_front_end_that_replaces_another_serves_what_was_loaded_meanwhile(start: StartFrontEnds) -> None:
    server = start("debug?dimension=5", "--admin-key", KEY, "--served-model-name", "first")
    assert load(server, "debug?dimension=7", served_model_name="second").status_code == 200
    assert [embed(server, "second").status_code for _ in range(MANY)] == [200] * MANY
    for victim in server.list_front_ends():
        victim.kill()
        server.wait_for_line("has ended; starting another")
        wait_until(
            lambda victim=victim: (  # type: ignore[misc]
                len(server.list_front_ends()) == NUM_FRONT_ENDS and victim not in server.list_front_ends()
            )
        )
    for _ in range(MANY):
        for name, size in (("first", 5), ("second", 7)):
            answer = embed(server, name)
            assert (answer.status_code, len(answer.json()["data"][0]["embedding"])) == (200, size)
        assert embed(server, "third").status_code == 404
    assert list_names(server) == ["first", "second"]


def test_a_model_is_unloaded_after_it_has_finished_what_it_had_accepted(start: StartFrontEnds) -> None:
    server = start("debug?delay_s=0.5", "--admin-key", KEY, "--served-model-name", "first")
    assert load(server, served_model_name="second").status_code == 200
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(embed, server, "first", f"text {number}") for number in range(8)]
        server.wait_for_pending(8)
        assert unload(server, "first").status_code == 200
        assert [each.result(DEADLINE_S).status_code for each in waiting] == [200] * 8
    assert list_names(server) == ["second"]


def test_the_work_of_an_unloaded_model_is_dropped_at_the_deadline(start: StartFrontEnds) -> None:
    slow = f"debug?delay_s={DEADLINE_S}&hang_on=poison"
    options = ["--shutdown-timeout-s", "1", "--batch-size", "1"]
    server = start(slow, "--admin-key", KEY, "--served-model-name", "first", *options)
    assert load(server, served_model_name="second").status_code == 200
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(embed, server, "first", f"text {number}") for number in range(8)]
        server.wait_for_pending(8)
        started_s = time.monotonic()
        assert unload(server, "first").status_code == 200
        assert time.monotonic() - started_s < DEADLINE_S / 2
        assert [each.result(DEADLINE_S).status_code for each in waiting] == [503] * 8
    assert embed(server, "second").status_code == 200


def test_requests_wait_for_a_model_that_is_reloaded(start: StartFrontEnds) -> None:
    server = start("debug", "--admin-key", KEY, "--served-model-name", "first")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        reloads = pool.submit(
            httpx.post,
            f"{server.url}/admin/models/first/reload",
            headers=HEADERS,
            timeout=DEADLINE_S,
            verify=False,
        )
        statuses = [embed(server, "first").status_code for _ in range(MANY)]
        assert reloads.result(DEADLINE_S).status_code == 200
    assert statuses == [200] * MANY
    assert embed(server, "first").status_code == 200


def test_the_admin_key_is_needed_and_errors_are_those_of_one_process(start: StartFrontEnds) -> None:
    server = start("debug", "--admin-key", KEY)
    for headers, status in (({}, 401), (HEADERS, 404)):
        path = "/admin/models/unknown/reload"
        assert httpx.post(server.url + path, headers=headers, verify=False).status_code == status
    assert load(server, "other", no_such_option=1).status_code == 422


def test_requests_of_a_front_end_that_ends_leave_a_model_of_the_engine_process(start: StartFrontEnds) -> None:
    server = start("debug", "--admin-key", KEY, "--served-model-name", "first")
    options = {"served_model_name": "slow", "batch_size": 1}
    assert load(server, "debug?delay_s=0.3", **options).status_code == 200

    def count_pending() -> int:
        entries = httpx.get(f"{server.url}/models", timeout=DEADLINE_S, verify=False).json()["data"]
        pending: int = next(each["stats"]["results_pending"] for each in entries if each["id"] == "slow")
        return pending

    body = {"model": "slow", "input": [f"text {number}" for number in range(100)]}
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        waiting = [
            pool.submit(httpx.post, f"{server.url}/embeddings", json=body, timeout=DEADLINE_S, verify=False)
            for _ in range(8)
        ]
        wait_until(lambda: count_pending() == 8)
        for victim in server.list_front_ends():
            victim.kill()
        wait_until(lambda: len(server.list_front_ends()) == NUM_FRONT_ENDS)
        wait_until(lambda: count_pending() == 0)
        assert all(isinstance(each.exception(DEADLINE_S), httpx.TransportError) for each in waiting)


def count_loaded(server: FrontEndServer) -> float:
    text = httpx.get(f"{server.url}/metrics", timeout=DEADLINE_S, verify=False).text
    lines = [line for line in text.splitlines() if line.startswith("infinity_model_loaded{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def test_an_idle_model_is_unloaded_and_the_next_request_of_any_front_end_loads_it(
    start: StartFrontEnds,
) -> None:
    server = start("debug", "--idle-unload-s", "1")
    for _ in range(2):
        assert embed(server, None).status_code == 200
        wait_until(lambda: count_loaded(server) == 0)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: embed(server, None, f"text {number}"), range(16)))
    assert {answer.status_code for answer in answers} == {200}
    assert count_loaded(server) == 1


def test_a_model_that_a_front_end_uses_is_not_idle(start: StartFrontEnds) -> None:
    server = start("debug?delay_s=2.5", "--idle-unload-s", "1")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(embed, server, None)
        server.wait_for_pending(1)
        time.sleep(1.5)
        assert count_loaded(server) == 1
        assert answer.result(DEADLINE_S).status_code == 200
    wait_until(lambda: count_loaded(server) == 0)
