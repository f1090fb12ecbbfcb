"""TLS to Redis: one context for all connections of a worker, which follows its files when they are renewed."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from redis.asyncio.connection import SSLConnection
from redis.asyncio.sentinel import SentinelManagedConnection

from api.redis_store.connections import PatientConnection


class Tls:
    """Who is trusted, and who this worker is to a server that asks. Paths of PEM files; empty: none.

    `ca_file`: alone trusted; without it, what the system trusts. `key_file` may be in `cert_file`. The server's
    certificate must be valid for the host name, or the address, that it is reached by.
    """

    def __init__(self, ca_file: str = "", cert_file: str = "", key_file: str = "") -> None:
        self._files = (ca_file, cert_file, key_file)
        self._context: ssl.SSLContext | None = None
        self._made_of: tuple[int, ...] = ()

    def context(self) -> ssl.SSLContext:
        """The context. Made once: to read what the system trusts takes 50 ms, too long for each new connection.

        Made again when a file has changed, so that a renewed certificate needs no restart. Raises `OSError`.
        """
        stands = tuple(Path(name).stat().st_mtime_ns for name in self._files if name)
        if self._context is None or stands != self._made_of:
            self._context, self._made_of = tls_context(*self._files), stands
        return self._context


def tls_context(ca_file: str = "", cert_file: str = "", key_file: str = "") -> ssl.SSLContext:
    """A client's context of those files: certificates required, names checked. Raises `OSError` (`SSLError` is one)."""
    context = ssl.create_default_context(cafile=ca_file or None)
    if cert_file:
        # An encrypted key would be asked for at the terminal: an empty password is an error instead.
        context.load_cert_chain(cert_file, key_file or None, password="")
    return context


class TlsConnection(PatientConnection, SSLConnection):
    """A connection under `tls`, whose context it shares with all others."""

    def __init__(self, *, tls: Tls, **options: Any) -> None:
        super().__init__(**options)
        self._tls = tls

    def _connection_arguments(self) -> Mapping[str, Any]:
        return {**super(SSLConnection, self)._connection_arguments(), "ssl": self._tls.context()}


class SentinelTlsConnection(SentinelManagedConnection, TlsConnection):
    """The same to whichever server the Sentinels call the primary."""
