"""Bind the server's sockets before models load, so that a taken port is reported at once.

They listen later: until the models are ready, connections are refused, as health checks expect.
"""

from __future__ import annotations

import errno
import os
import socket

from infinity_emb.errors import StartupError

BACKLOG = 2048  # uvicorn lets the sockets listen again, with the same number
# Containers often map localhost to ::1 without having that address; 127.0.0.1 is enough then.
_NOT_AVAILABLE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def bind_sockets(host: str, port: int, *, shares_port: bool = False) -> list[socket.socket]:
    """Bind a socket to every address that `host` resolves to.

    port: 0 takes a free one.
    shares_port: allow other sockets with this option on the port; Linux divides connections among them.
    Raises StartupError when the port is in use or the address does not belong to this machine.
    """
    sockets: list[socket.socket] = []
    failure: OSError | None = None
    for family, address in _resolve(host, port):
        try:
            sockets.append(bind_socket(family, address, shares_port=shares_port))
        except OSError as exc:
            failure = exc
            if exc.errno not in _NOT_AVAILABLE:
                close_sockets(sockets)
                sockets.clear()
                break
    if not sockets and failure is not None:
        raise StartupError(_explain(failure, host, port)) from failure
    return sockets


def bind_groups(host: str, port: int, number: int) -> list[list[socket.socket]]:
    """Bind `number` groups of sockets to one port, a group for each process. Raises StartupError."""
    if number == 1:
        return [bind_sockets(host, port)]
    # Unlike sockets that share the port, this one fails if another server has it.
    first = bind_sockets(host, port)
    port = first[0].getsockname()[1]
    close_sockets(first)
    return [bind_sockets(host, port, shares_port=True) for _ in range(number)]


def listen(sockets: list[socket.socket], host: str, port: int) -> None:
    """Accept connections. Raises StartupError when another process already listens on the port."""
    try:
        for bound in sockets:
            bound.listen(BACKLOG)
    except OSError as exc:
        raise StartupError(_explain(exc, host, port)) from exc


def close_sockets(sockets: list[socket.socket]) -> None:
    """Close all sockets."""
    for bound in sockets:
        bound.close()


def base_url(sockets: list[socket.socket]) -> str:
    """Return `http://host:port` of the first socket."""
    host, port = sockets[0].getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _resolve(host: str, port: int) -> list[tuple[int, tuple[object, ...]]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as exc:
        raise StartupError(f"--host {host!r} is not an address of this machine ({exc.strerror})") from exc
    return list(dict.fromkeys((int(family), address) for family, _, _, _, address in found))


def bind_socket(family: int, address: tuple[object, ...], *, shares_port: bool = False) -> socket.socket:
    """Bind a socket to an address. Raises OSError."""
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Allows a restart while connections of the previous process linger in TIME_WAIT. On Windows, two
        # processes could share the port.
        if os.name == "posix":
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shares_port:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # `::` takes IPv4 as well; `localhost` has a socket for each.
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address[0] != "::")
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def _explain(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is in use on {host}; choose another with --port"
    if error.errno == errno.EACCES:
        return f"port {port} on {host} needs privileges; choose another with --port"
    return f"cannot listen on {host} port {port}: {error.strerror}; choose another with --host"
