"""Decoders, downloads and look-ups that no client can occupy alone."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import numpy as np
import pytest

from infinity_emb.errors import EngineNotReady
from infinity_emb.preprocessing.media.decoder import Decoder, DecoderProcess
from infinity_emb.scheduling.fair_queue import Flow
from infinity_emb.scheduling.media_workers import (
    MAX_FETCHES_PER_CLIENT,
    MAX_LOOKUPS_PER_CLIENT,
    HostResolver,
    MediaWorkers,
)
from infinity_emb.scheduling.request_context import request_options
from tests.support.event_loop import PATIENCE_S, run
from tests.support.fake_engines import run_ready_tasks
from tests.support.gated_backend import Gate
from tests.support.media_bombs import IMAGES


def start(client: str, coroutine: Any) -> asyncio.Task[Any]:
    with request_options(client=client):
        return asyncio.create_task(coroutine)


def test_a_client_leaves_a_decoder_to_others() -> None:
    gate = Gate()

    async def main() -> None:
        workers = MediaWorkers(2)
        hog = [start("hog", workers.decode(gate)) for _ in range(10)]
        await gate.wait_until_reached()
        assert await start("other", workers.decode(lambda decoder: "decoded")) == "decoded"
        gate.open()
        await asyncio.gather(*hog)
        workers.close()

    run(main())


def test_the_decoder_of_a_cancelled_request_is_killed_and_the_next_one_gets_another() -> None:
    is_decoding, may_go_on = threading.Event(), threading.Event()
    outcomes: list[str] = []

    def reserve(amount: float) -> None:
        is_decoding.set()
        assert may_go_on.wait(PATIENCE_S)

    def decode(decoder: Decoder) -> None:
        try:
            decoder.decode_image(IMAGES["PNG"], reserve)
        except BaseException as exc:
            outcomes.append(str(exc))
            raise

    async def main() -> None:
        workers = MediaWorkers(1)
        cancelled = start("a", workers.decode(decode))
        await asyncio.to_thread(is_decoding.wait, PATIENCE_S)
        cancelled.cancel()
        following = start(
            "b", workers.decode(lambda decoder: decoder.decode_image(IMAGES["PNG"], lambda amount: None))
        )
        await run_ready_tasks()
        assert cancelled.cancelled()
        assert not following.done()
        may_go_on.set()
        assert isinstance(await following, np.ndarray)
        workers.close()

    run(main())
    assert len(outcomes) == 1
    assert "its decoder crashed" in outcomes[0]


def test_closed_workers_refuse_what_waits_and_what_comes() -> None:
    gate = Gate()

    async def main() -> None:
        workers = MediaWorkers(1)
        running, waiting = (start("a", workers.decode(gate)) for _ in range(2))
        await gate.wait_until_reached()
        workers.close()
        for refused in (waiting, start("a", workers.decode(gate))):
            with pytest.raises(EngineNotReady):
                await refused
        gate.open()
        await running

    run(main())


def test_a_client_downloads_some_files_at_a_time_beside_others() -> None:
    async def main() -> None:
        workers = MediaWorkers(1)
        may_end = asyncio.Event()
        num_fetching = 0

        async def fetch() -> None:
            nonlocal num_fetching
            async with workers.fetch_permit():
                num_fetching += 1
                await may_end.wait()

        hog = [start("hog", fetch()) for _ in range(50)]
        await run_ready_tasks()
        assert num_fetching == MAX_FETCHES_PER_CLIENT
        other = start("other", fetch())
        await run_ready_tasks()
        assert num_fetching == MAX_FETCHES_PER_CLIENT + 1
        may_end.set()
        await asyncio.gather(other, *hog)
        workers.close()

    run(main())


def test_look_ups_without_an_answer_hold_up_their_own_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that does not answer kept every thread busy, long after the requests had ended."""
    gate, num_started = Gate(), 0

    def getaddrinfo(host: str, port: int, **_: Any) -> Any:
        nonlocal num_started
        if host == "slow.example":
            num_started += 1
            gate()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    async def main() -> None:
        resolve = HostResolver()
        hog = [start("hog", resolve("slow.example", 80)) for _ in range(20)]
        await gate.wait_until_reached()
        for task in hog[:MAX_LOOKUPS_PER_CLIENT]:
            task.cancel()  # their requests have ended, their threads have not
        await run_ready_tasks()
        assert await start("other", resolve("fast.example", 80)) == ["93.184.216.34"]
        assert num_started == MAX_LOOKUPS_PER_CLIENT
        gate.open()
        await asyncio.wait(hog)

    run(main())


def test_a_decoder_that_was_returned_is_not_killed_with_its_last_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next request may have taken it by then."""
    killed: list[object] = []
    monkeypatch.setattr(DecoderProcess, "kill", killed.append)

    async def main() -> None:
        workers = MediaWorkers(1)
        release = workers._decoding.release

        def release_and_cancel(flow: Flow) -> None:
            release(flow)
            first.cancel()

        may_end = threading.Event()
        first = start("a", workers.decode(lambda _: may_end.wait(PATIENCE_S)))
        second = start("b", workers.decode(lambda _: "decoded"))
        await run_ready_tasks()
        monkeypatch.setattr(workers._decoding, "release", release_and_cancel)
        may_end.set()
        assert await second == "decoded"
        assert first.cancelled()
        workers.close()

    run(main())
    assert not killed
