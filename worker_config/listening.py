"""Sockets of the master: taken ports are found before anything starts, and said in one line."""

from __future__ import annotations

import errno
import socket
from typing import Any


class PortTaken(Exception):
    """Nothing can listen there: one line that names the variable."""


def listen(variable: str, host: str, port: int) -> socket.socket:
    """A listening socket on `host`:`port`. Raises `PortTaken`, one line that names the variable to change."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise PortTaken(f"HOST: can not listen on {host!r}: {error.strerror}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise PortTaken(_why(variable, host, port, error)) from None
    return listener


def require_free_port(variable: str, host: str, port: int) -> None:
    """Raises `PortTaken` unless `host`:`port` can be listened on now."""
    listen(variable, host, port).close()


def listening_host(listener: Any) -> str | None:
    """The address that a listener of gunicorn's is bound to; None for a unix socket, which is this machine's alone."""
    name = listener.sock.getsockname()
    return str(name[0]) if isinstance(name, tuple) else None


def bind_address(host: str, port: int) -> str:
    """As gunicorn takes it: an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _why(variable: str, host: str, port: int, error: OSError) -> str:
    where = bind_address(host, port)
    if error.errno == errno.EADDRINUSE:
        return f"{variable}: {where} is taken; stop what listens there, or set {variable} to a free port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"HOST: this machine has no address {host!r}"
    return f"{variable}: can not listen on {where}: {error.strerror}"
