"""The sockets of the server, bound before models load so that a taken port is known at once.

Knows nothing of HTTP. Bound is not yet listening: until the models are ready, clients are refused, which is
what a load balancer's check should see.
"""

from __future__ import annotations

import errno
import os
import socket

from infinity_emb.errors import StartupError

BACKLOG = 2048
# A container often names ::1 as localhost without having it; the other address of localhost does then.
_ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def bind_sockets(host: str, port: int) -> list[socket.socket]:
    """A socket for every address of this machine that `host` names.

    port: 0 takes a free one.
    Raises StartupError when the port is in use or the address is none of this machine's.
    """
    sockets: list[socket.socket] = []
    absent: OSError | None = None
    for family, address in _resolve(host, port):
        try:
            sockets.append(_bind(family, address))
        except OSError as exc:
            absent = exc
            if exc.errno not in _ABSENT:
                close_sockets(sockets)
                sockets.clear()
                break
    if not sockets and absent is not None:
        raise StartupError(_explain(absent, host, port)) from absent
    return sockets


def listen(sockets: list[socket.socket], host: str, port: int) -> None:
    """Let clients in. Raises StartupError when another process that bound the same port was first."""
    try:
        for each in sockets:
            each.listen(BACKLOG)
    except OSError as exc:
        raise StartupError(_explain(exc, host, port)) from exc


def close_sockets(sockets: list[socket.socket]) -> None:
    """Give the ports back."""
    for each in sockets:
        each.close()


def base_url(sockets: list[socket.socket]) -> str:
    """`http://host:port` of the first socket, with the port that it got."""
    host, port = sockets[0].getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _resolve(host: str, port: int) -> list[tuple[int, tuple[object, ...]]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as exc:
        raise StartupError(f"--host {host!r} is no address of this machine ({exc.strerror})") from exc
    return list(dict.fromkeys((int(family), address) for family, _, _, _, address in found))


def _bind(family: int, address: tuple[object, ...]) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        # A restart must not wait until the kernel forgets the last connections. Windows lets two processes
        # share a port with this option, and needs it for nothing.
        if os.name == "posix":
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def _explain(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is in use on {host}; choose another with --port"
    if error.errno == errno.EACCES:
        return f"port {port} on {host} needs more rights than this process has; choose another with --port"
    return f"cannot listen on {host} port {port}: {error.strerror}; choose another with --host"
