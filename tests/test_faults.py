"""Break things in a live server: each request gets one response or a closed connection.

The server's counters must agree with what the clients saw.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import signal
from collections import Counter
from contextlib import suppress

import httpx
import pytest

from tests.support.event_loop import run
from tests.support.live_clients import (
    CLOSED,
    NUM_CLIENTS,
    embed_texts,
    make_texts_with,
    open_client,
    read_counters,
    send_requests,
)
from tests.support.server_process import FAKE, StartServer

pytestmark = pytest.mark.slow

FAULTS = ["fail_on", "wrong_count_on", "nan_on", "die_on"]


@pytest.mark.parametrize("fault", FAULTS)
def test_only_requests_with_the_text_to_blame_fail_and_the_counters_agree(
    serve: StartServer, fault: str
) -> None:
    server = serve("v2", *FAKE, "--model-id", f"debug?{fault}=poison")
    make_texts = make_texts_with("poison", every=40)

    async def main() -> None:
        async with open_client(server) as client:
            statuses = await send_requests(client, make_texts, 400)
            for number, status in enumerate(statuses):
                assert status == (500 if number % 40 == 39 else 200)
            assert await embed_texts(client, "afterwards") == 200
            assert (await client.get("/ready")).status_code == 200
            counters = await read_counters(client)
            assert counters["infinity_failed_items_total"] == statuses.count(500)
            answered = sum(len(make_texts(n)) for n, status in enumerate(statuses) if status == 200)
            assert counters["infinity_items_total"] >= answered
            assert counters["infinity_queue_items"] == counters["infinity_pending_requests"] == 0

    run(main())


def test_a_hung_device_fails_waiting_requests_and_ends_the_process(serve: StartServer) -> None:
    server = serve(
        "v2", *FAKE, "--model-id", "debug?hang_on=poison", "--batch-timeout-s", "1", "--batch-size", "1"
    )

    async def main() -> list[int]:
        async with open_client(server) as client:
            assert await embed_texts(client, "before") == 200
            return await asyncio.gather(
                *(embed_texts(client, text) for text in ["poison", *map(str, range(20))])
            )

    statuses = run(main())
    exit_code, rest = server.stop()
    assert statuses[0] == 503
    assert set(statuses) <= {200, 503}
    assert exit_code == 1
    assert "lost the device of debug?hang_on=poison" in rest.splitlines()[-1]
    assert "Traceback" not in rest


def test_a_suspended_server_resumes_and_answers_every_request(serve: StartServer) -> None:
    """Suspend the process as a sleeping machine does, for longer than a batch may take."""
    server = serve("v2", *FAKE, "--model-id", "debug?delay_s=0.05", "--batch-timeout-s", "1")

    async def main() -> None:
        async with open_client(server) as client:
            asking = asyncio.create_task(send_requests(client, make_texts_with("", every=2), 200))
            while (await read_counters(client))["infinity_items_total"] < 20:
                await asyncio.sleep(0.01)
            server.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(3)
            assert not asking.done()
            server.process.send_signal(signal.SIGCONT)
            assert set(await asking) == {200}
            assert (await client.get("/ready")).status_code == 200
            assert (await read_counters(client))["infinity_worker_restarts_total"] == 0

    run(main())
    assert server.stop(signal.SIGTERM)[0] == 0


def test_a_thread_that_keeps_crashing_ends_the_process(serve: StartServer) -> None:
    server = serve("v2", *FAKE, "--model-id", "debug?die_on=poison")

    async def main() -> list[int]:
        async with open_client(server) as client:
            return [await embed_texts(client, "poison") for _ in range(7)]

    statuses = run(main())
    exit_code, _ = server.stop()
    assert statuses[:5] == [500] * 5
    assert set(statuses[5:]) <= {503, CLOSED}
    assert exit_code == 1


def test_requests_of_disconnected_clients_are_not_computed(serve: StartServer) -> None:
    server = serve("v2", *FAKE, "--model-id", "debug?delay_s=0.05", "--batch-size", "1")

    async def main() -> None:
        async with open_client(server) as client:
            leaving = [
                asyncio.create_task(embed_texts(client, *(f"text {number} {each}" for each in range(100))))
                for number in range(10)
            ]
            while (await read_counters(client))["infinity_queue_items"] < 500:
                await asyncio.sleep(0.01)
            for task in leaving:
                task.cancel()
            await asyncio.gather(*leaving, return_exceptions=True)
            assert await embed_texts(client, "another client") == 200
            # The worker skips texts when their turn comes.
            while (counters := await read_counters(client))["infinity_items_skipped_total"] <= 400:
                await asyncio.sleep(0.01)
            assert counters["infinity_items_total"] < 500, "most of a thousand texts were never computed"
            assert counters["infinity_requests_disconnected_total"] == 10
            assert counters["infinity_pending_requests"] == 0
            assert counters["infinity_failed_items_total"] == 0

    run(main())


def test_a_signal_logs_the_state_but_no_input(serve: StartServer) -> None:
    server = serve("v2", *FAKE, "--model-id", "debug?delay_s=2", "--served-model-name", "slow")

    async def main() -> None:
        async with open_client(server) as client:
            asking = [asyncio.create_task(embed_texts(client, f"secret {number}")) for number in range(3)]
            while (await read_counters(client))["infinity_pending_requests"] < 3:
                await asyncio.sleep(0.01)
            server.process.send_signal(signal.SIGUSR1)
            assert set(await asyncio.gather(*asking)) == {200}

    run(main())
    server.wait_for_line("infinity-replica-0")
    log = "".join(server.lines)
    for words in ["model 'slow'", "accepted: 3 requests of 3 inputs", "items under way for", " tasks\n"]:
        assert words in log
    assert "secret" not in log
    server.stop(signal.SIGTERM)


def test_all_faults_at_once(serve: StartServer) -> None:
    """Combine models with different faults, bad requests and clients that disconnect."""
    rng = random.Random(0)
    models = {
        "fails": "debug?fail_on=poison",
        "dies": "debug?die_on=poison",
        "miscounts": "debug?wrong_count_on=poison",
        "slow": "debug?delay_s=0.02&nan_on=poison",
    }
    options = [("--model-id", path, "--served-model-name", name) for name, path in models.items()]
    server = serve("v2", *FAKE, *itertools.chain(*options), "--max-queue-items", "200")

    async def one_request(client: httpx.AsyncClient) -> tuple[str, int]:
        model = rng.choice(list(models))
        match rng.choices(["good", "poison", "bad", "leave"], weights=[80, 2, 10, 8])[0]:
            case "good":
                texts = [f"a text {'x' * rng.randrange(200)}" for _ in range(rng.randrange(1, 40))]
                return "good", await embed_texts(client, *texts, model=model)
            case "poison":
                return "poison", await embed_texts(client, "fine", "poison", model=model)
            case "bad":
                response = await client.post(
                    "/embeddings",
                    content=b'{"input": [' * rng.randrange(1, 5),
                    headers={"content-type": "application/json"},
                )
                return "bad", response.status_code
            case _:
                with suppress(TimeoutError):
                    await asyncio.wait_for(
                        embed_texts(client, *["leaves"] * 30, model=model), rng.random() / 20
                    )
                return "leave", CLOSED

    async def main() -> None:
        async with open_client(server) as client:
            seen: Counter[tuple[str, int]] = Counter()

            async def one_client() -> None:
                for _ in range(20):
                    seen[await one_request(client)] += 1

            await asyncio.gather(*(one_client() for _ in range(NUM_CLIENTS)))
            allowed = {"good": {200, 429}, "poison": {500, 429, 200}, "bad": {422}, "leave": {CLOSED}}
            for (kind, status), number in seen.items():
                assert status in allowed[kind], f"{number} {kind} requests were answered {status}"
            assert seen["good", 200] > 100
            while (await read_counters(client))["infinity_pending_requests"]:
                await asyncio.sleep(0.01)
            for model in models:
                assert await embed_texts(client, "afterwards", model=model) == 200
            assert (await client.get("/ready")).status_code == 200
            counters = await read_counters(client)
            assert counters["infinity_refused_requests_total"] >= seen["good", 429]
            assert counters["infinity_queue_items"] == 0

    run(main())
