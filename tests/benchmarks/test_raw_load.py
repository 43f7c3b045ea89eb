"""The load generator sends what it is told, and tells what became of each request."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from benchmarks.raw_load import CLOSED, PROBE, REFUSED, UNANSWERED, RawLoad
from tests.support.event_loop import PATIENCE_S

REQUEST = b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"
KEPT = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n12345"
LAST = b"HTTP/1.1 503 \r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


@contextmanager
def responding(*responses: bytes) -> Iterator[int]:
    """Accept one connection for each response, send it in two parts, and serve the port meanwhile."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(PATIENCE_S)

        def serve() -> None:
            for response in responses:
                client, _ = listening.accept()
                with client:
                    client.settimeout(PATIENCE_S)
                    while response and client.recv(2**16):
                        client.sendall(response[:20])
                        client.sendall(response[20:])
                        if response == LAST:
                            break

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            thread.join(PATIENCE_S)


def test_a_kept_connection_carries_all_requests_of_a_client() -> None:
    with responding(KEPT) as port:
        load = RawLoad([REQUEST, REQUEST], port=port)
        answers = load.run_closed(1, 4)
        load.close()
    assert [answer.number for answer in answers] == [0, 1, 0, 1]
    assert {answer.response for answer in answers} == {KEPT}
    assert load.max_connections == 1


def test_a_closed_connection_is_not_used_again() -> None:
    with responding(LAST, LAST) as port:
        load = RawLoad([REQUEST], port=port)
        load.run_closed(1, 2)
        load.close()
    assert load.count_outcomes() == {"503": 2}


def test_connections_that_end_without_a_response_are_told() -> None:
    with responding(b"") as port:
        load = RawLoad([REQUEST], port=port)
        load.run_closed(1, 1)
        load.close()
    assert set(load.count_outcomes()) <= {CLOSED, "reset"}
    gone = RawLoad([REQUEST], port=port)
    gone.run_closed(1, 1)
    gone.close()
    assert set(gone.count_outcomes()) <= {REFUSED, "reset"}


def test_an_open_load_does_not_wait_for_responses() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        load = RawLoad([REQUEST], port=listening.getsockname()[1], probe=REQUEST, probes_per_s=20)
        load.run_open(per_s=100, until_s=0.2)
        load.drain(0.1)
        load.close()
    outcomes = [answer.outcome for answer in load.answers if answer.number == PROBE]
    assert outcomes
    assert set(outcomes) == {UNANSWERED}
    assert 15 <= load.count_outcomes()[UNANSWERED] <= 21


@pytest.mark.parametrize("num_requests", [1, 7])
def test_no_more_is_sent_than_asked_for(num_requests: int) -> None:
    with responding(KEPT) as port:
        load = RawLoad([REQUEST], port=port)
        assert len(load.run_closed(1, num_requests)) == num_requests
        load.close()
