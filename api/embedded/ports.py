"""Loopback ports: is one free, and which one is."""

from __future__ import annotations

import errno
import socket

from api.embedded.errors import LaunchError, PortTaken


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen on `port` of `host` now."""
    try:
        check_free(port, host)
    except PortTaken:
        return False
    return True


def check_free(port: int, host: str = "127.0.0.1") -> None:
    """Raises `PortTaken` where another program listens there, `LaunchError` where nobody can listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortTaken(f"port {port} on {host} is taken by another program") from None
            raise LaunchError(f"nobody can listen on port {port} of {host}: {error.strerror or error}") from None


def free_port(preferred: int | None = None) -> int:
    """`preferred` where it is free, else any free loopback port."""
    if preferred is not None and is_free(preferred):
        return preferred
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
