"""The server accepts many connections in each turn of the event loop, and closes the port when it stops."""

from __future__ import annotations

import socket
import threading

import pytest

from infinity_emb.cli.uvicorn_server import ACCEPTS_PER_TURN
from tests.support.event_loop import PATIENCE_S
from tests.support.server_on_a_thread import ServerOnAThread, StartHere, connect, wait_until

NUM_CLIENTS = 10 * ACCEPTS_PER_TURN


def test_connections_that_wait_are_accepted_in_few_turns(start_here: StartHere) -> None:
    """uvloop accepted one in each turn: at ten times the load, the backlog overflowed in two seconds."""
    server = start_here()
    with connect(server) as first:
        wait_until(lambda: bool(server.server_state.connections))
        clients, num_turns = connect_to_busy_loop(server)
    assert num_turns <= NUM_CLIENTS / ACCEPTS_PER_TURN + 5
    for client in [first, *clients]:
        client.close()


def connect_to_busy_loop(server: ServerOnAThread) -> tuple[list[socket.socket], int]:
    """Return clients that connected while the event loop was busy, and the turns that accepted them all."""
    connections = server.server_state.connections
    loop = next(iter(connections)).loop
    is_busy, is_released, is_done = threading.Event(), threading.Event(), threading.Event()
    num_turns = 0

    def block() -> None:
        is_busy.set()
        assert is_released.wait(PATIENCE_S)
        count_turn()

    def count_turn() -> None:
        nonlocal num_turns
        if len(connections) > NUM_CLIENTS:
            is_done.set()
        else:
            num_turns += 1
            loop.call_soon(count_turn)

    loop.call_soon_threadsafe(block)
    assert is_busy.wait(PATIENCE_S)
    clients = [connect(server) for _ in range(NUM_CLIENTS)]
    is_released.set()
    assert is_done.wait(PATIENCE_S)
    return clients, num_turns


def test_the_port_is_closed_when_the_server_has_stopped(start_here: StartHere) -> None:
    server = start_here()
    connect(server).close()
    server.should_exit = True
    server.thread.join(PATIENCE_S)
    with pytest.raises(ConnectionRefusedError):
        connect(server)
