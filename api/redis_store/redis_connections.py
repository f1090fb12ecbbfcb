"""The kinds of connections to Redis: TCP, Unix sockets, TLS that follows renewed files, and Sentinels."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from redis.asyncio import Redis, Sentinel
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.sentinel import MasterNotFoundError, SentinelManagedConnection
from redis.exceptions import AuthenticationError, RedisError, ResponseError

from api.redis_store.health_gated import LagTolerantConnection


class TcpConnection(LagTolerantConnection, Connection):
    """A connection to a host and port."""


class UnixConnection(LagTolerantConnection, UnixDomainSocketConnection):
    """A connection to a Unix socket."""


class SentinelTcpConnection(SentinelManagedConnection, TcpConnection):
    """A connection to the primary that the Sentinels name."""


class Tls:
    """The files for TLS, as paths of PEM files; empty: none.

    `ca_file` replaces the system's trusted certificates. `cert_file` and `key_file` identify this worker; the key may
    be in `cert_file`. The server's certificate must be valid for the host name or address in the URL.
    """

    def __init__(self, ca_file: str = "", cert_file: str = "", key_file: str = "") -> None:
        self._files = (ca_file, cert_file, key_file)
        self._context: ssl.SSLContext | None = None
        self._made_of: tuple[int, ...] = ()

    def context(self) -> ssl.SSLContext:
        """Returns the context, made once: reading the system's certificates takes 50 ms, too long for each connection.

        A changed file is read again, so that renewed certificates need no restart. Raises `OSError`.
        """
        stands = tuple(Path(name).stat().st_mtime_ns for name in self._files if name)
        if self._context is None or stands != self._made_of:
            self._context, self._made_of = tls_context(*self._files), stands
        return self._context


def tls_context(ca_file: str = "", cert_file: str = "", key_file: str = "") -> ssl.SSLContext:
    """Makes a client context that requires and checks certificates. Raises `OSError`, including `SSLError`."""
    context = ssl.create_default_context(cafile=ca_file or None)
    if cert_file:
        # Without a password, OpenSSL asks for that of an encrypted key at the terminal. An empty one is an error.
        context.load_cert_chain(cert_file, key_file or None, password="")
    return context


class TlsConnection(LagTolerantConnection, SSLConnection):
    """A connection under TLS. All connections share the context of `tls`."""

    def __init__(self, *, tls: Tls, **options: Any) -> None:
        super().__init__(**options)
        self._tls = tls

    def _connection_arguments(self) -> Mapping[str, Any]:
        return {**super(SSLConnection, self)._connection_arguments(), "ssl": self._tls.context()}


class SentinelTlsConnection(SentinelManagedConnection, TlsConnection):
    """A connection under TLS to the primary that the Sentinels name."""


class SentinelsRefuse(MasterNotFoundError):
    """No Sentinel names a primary, and at least one refused to answer."""


class Sentinels(Sentinel):
    """Asks the Sentinels for the primary, beginning with the one that last answered.

    A Sentinel that refuses to answer counts as unreachable, and the next one is asked. redis-py takes the refusal for
    an answer of the primary, and reports only the type of each error.
    """

    def __init__(self, watchers: list[Redis]) -> None:
        super().__init__([])  # type: ignore[no-untyped-call]
        self.sentinels = watchers

    async def discover_master(self, service_name: str) -> tuple[Any, Any]:
        """Returns host and port. Raises `MasterNotFoundError`, which counts as a lost Redis."""
        reasons: list[str] = []
        refused = False
        for sentinel in list(self.sentinels):
            try:
                masters: Any = await sentinel.sentinel_masters()
            except (RedisError, OSError, TimeoutError) as error:
                refused = refused or isinstance(error, AuthenticationError | ResponseError)
                reasons.append(f"{_name(sentinel)}: {error}")
                continue
            state = masters.get(service_name)
            if state and self.check_master_state(state, service_name):
                self.sentinels.sort(key=lambda one, answered=sentinel: one is not answered)  # type: ignore[misc]
                return state["ip"], state["port"]
            reasons.append(f"{_name(sentinel)}: {'it is down' if state else 'not known'}")
        kind = SentinelsRefuse if refused else MasterNotFoundError
        raise kind(f"no primary by the name of {service_name}; {'; '.join(reasons)}")


def _name(sentinel: Redis) -> str:
    options = sentinel.connection_pool.connection_kwargs
    return f"{options['host']}:{options['port']}"
