from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

import pytest

from infinity_emb.cli import sockets as listening
from infinity_emb.errors import StartupError


@pytest.fixture
def taken() -> Iterator[socket.socket]:
    """A socket that listens on a free port of the loopback."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def test_port_0_takes_a_free_port_and_the_url_has_it() -> None:
    sockets = listening.bind_sockets("127.0.0.1", 0)
    port = sockets[0].getsockname()[1]
    assert port != 0
    assert listening.base_url(sockets) == f"http://127.0.0.1:{port}"
    listening.close_sockets(sockets)


def test_a_bound_port_refuses_clients_until_it_listens() -> None:
    sockets = listening.bind_sockets("127.0.0.1", 0)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(sockets[0].getsockname())
    listening.listen(sockets, "127.0.0.1", 0)
    socket.create_connection(sockets[0].getsockname()).close()
    listening.close_sockets(sockets)


def test_a_port_in_use_is_told_at_once(taken: socket.socket) -> None:
    port = taken.getsockname()[1]
    with pytest.raises(
        StartupError, match=f"^port {port} is in use on 127.0.0.1; choose another with --port$"
    ):
        listening.bind_sockets("127.0.0.1", port)


def test_of_two_processes_that_bound_one_port_the_second_to_listen_is_told() -> None:
    """Linux lets both bind, as they must for a quick restart."""
    first = listening.bind_sockets("127.0.0.1", 0)
    port = first[0].getsockname()[1]
    second = listening.bind_sockets("127.0.0.1", port)
    listening.listen(first, "127.0.0.1", port)
    with pytest.raises(StartupError, match=f"^port {port} is in use"):
        listening.listen(second, "127.0.0.1", port)
    listening.close_sockets(first + second)


def test_groups_of_sockets_share_one_port_that_nobody_else_gets() -> None:
    groups = listening.bind_groups("127.0.0.1", 0, 3)
    sockets = [bound for group in groups for bound in group]
    try:
        port = sockets[0].getsockname()[1]
        assert [bound.getsockname()[1] for bound in sockets] == [port] * 3
        for group in groups:
            listening.listen(group, "127.0.0.1", port)
        for number in (1, 3):
            with pytest.raises(StartupError, match="in use"):
                listening.bind_groups("127.0.0.1", port, number)
    finally:
        listening.close_sockets(sockets)


def test_a_host_of_another_machine_is_refused() -> None:
    with pytest.raises(StartupError, match=r"^cannot listen on 192\.0\.2\.1 port 7997: .*--host"):
        listening.bind_sockets("192.0.2.1", 7997)


def test_a_host_that_is_no_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(StartupError, match=r"^--host 'nowhere' is not an address of this machine"):
        listening.bind_sockets("nowhere", 7997)


def test_a_missing_ipv6_does_not_hinder_localhost(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container ::1 often stands in /etc/hosts without being there."""
    addresses = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
    ]
    real_bind = listening.bind_socket

    def bind(family: int, address: tuple[object, ...], **options: bool) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        return real_bind(family, address, **options)

    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
    monkeypatch.setattr(listening, "bind_socket", bind)
    sockets = listening.bind_sockets("localhost", 0)
    assert [sock.getsockname()[0] for sock in sockets] == ["127.0.0.1"]
    listening.close_sockets(sockets)


def test_every_address_takes_ipv4_and_ipv6() -> None:
    """With `--host ::` IPv4 was refused, and nothing took both."""
    try:
        sockets = listening.bind_sockets("::", 0)
    except StartupError:
        pytest.skip("this machine has no IPv6")
    listening.listen(sockets, "::", 0)
    port = sockets[0].getsockname()[1]
    for host in ("127.0.0.1", "::1"):
        socket.create_connection((host, port)).close()
    listening.close_sockets(sockets)


def test_an_ipv6_address_stands_in_brackets_in_the_url() -> None:
    class Bound:
        def getsockname(self) -> tuple[str, int, int, int]:
            return ("::1", 7997, 0, 0)

    assert listening.base_url([Bound()]) == "http://[::1]:7997"
