"""Connections to Redis whose waits end by a `LagTimeout`: a busy worker does not take its own lag for a slow Redis.

redis-py sends through `asyncio.wait_for`, which on Python 3.11 loses a cancellation that comes just as the command has
been written, and costs a task for each command. Neither happens here: redis-py gets no timeout, each wait has ours.

TLS to Redis: one context for all connections of a worker, which follows its files when they are renewed.

Sentinels: asked which server is the primary, in the order in which they last answered.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from redis.asyncio import Redis, Sentinel
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.sentinel import MasterNotFoundError, SentinelManagedConnection
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from api.cancellation import LagTimeout

ROOM: Final = 16 * 1024
"""Bytes that a buffer takes before a writer must wait: asyncio and uvloop have at least four times as many."""


class LagTolerantConnection(AbstractConnection):
    """To be mixed in before one of redis-py's classes. `socket_timeout` is for a write, and for the reply to it."""

    def __init__(self, *, socket_timeout: float | None = None, **options: Any) -> None:
        super().__init__(socket_timeout=None, **options)
        self._timeout = socket_timeout

    async def _connect(self) -> None:
        """As redis-py, which takes its `TimeoutError` for what it is."""
        timeout = self.socket_connect_timeout
        if timeout is None:
            await super()._connect()  # type: ignore[safe-super, no-untyped-call]
            return
        self.socket_connect_timeout = None
        try:
            with LagTimeout(timeout):
                await super()._connect()  # type: ignore[safe-super, no-untyped-call]
        finally:
            self.socket_connect_timeout = timeout

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        """As redis-py. Connecting, where that is needed first, has its own timeout."""
        if not self.is_connected:
            await self.connect_check_health(check_health=False)
        if self._timeout is None or self._cannot_wait(command):
            await super().send_packed_command(command, check_health)
            return
        try:
            with LagTimeout(self._timeout):
                await super().send_packed_command(command, check_health)
        except TimeoutError:  # redis-py has closed the connection
            raise RedisTimeoutError("Timeout writing to socket") from None

    def _cannot_wait(self, command: bytes | str | Iterable[bytes]) -> bool:
        """Whether a write goes straight into an empty buffer that has room for it, as nearly all do."""
        writer = self._writer
        if writer is None or self.health_check_interval or not isinstance(command, list):
            return False
        size = sum(map(len, command))
        return size < ROOM and writer.transport.get_write_buffer_size() == 0

    async def read_response(
        self,
        disable_decoding: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109 - of redis-py
        *,
        disconnect_on_error: bool = True,
        push_request: bool | None = False,
    ) -> Any:
        """As redis-py. A `timeout` that the caller gives is the caller's own."""
        options: dict[str, Any] = {"disconnect_on_error": disconnect_on_error, "push_request": push_request}
        if timeout is not None or self._timeout is None:
            return await super().read_response(disable_decoding, timeout, **options)
        try:
            with LagTimeout(self._timeout):
                return await super().read_response(disable_decoding, **options)
        except TimeoutError:
            raise RedisTimeoutError(f"Timeout reading from {self._host_error()}") from None


class TcpConnection(LagTolerantConnection, Connection):
    """To a host and port."""


class UnixConnection(LagTolerantConnection, UnixDomainSocketConnection):
    """To a socket in the file system."""


class SentinelTcpConnection(SentinelManagedConnection, TcpConnection):
    """To whichever server the Sentinels call the primary."""


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


class TlsConnection(LagTolerantConnection, SSLConnection):
    """A connection under `tls`, whose context it shares with all others."""

    def __init__(self, *, tls: Tls, **options: Any) -> None:
        super().__init__(**options)
        self._tls = tls

    def _connection_arguments(self) -> Mapping[str, Any]:
        return {**super(SSLConnection, self)._connection_arguments(), "ssl": self._tls.context()}


class SentinelTlsConnection(SentinelManagedConnection, TlsConnection):
    """The same to whichever server the Sentinels call the primary."""


class SentinelsRefuse(MasterNotFoundError):
    """No Sentinel names a primary, and one of them does not tell who asks."""


class Sentinels(Sentinel):
    """One that refuses to tell is as good as one that is away: the next is asked.

    redis-py takes its refusal for an answer of the primary, which then seems to be there; and it says but the kind of
    each error.
    """

    def __init__(self, watchers: list[Redis]) -> None:
        super().__init__([])  # type: ignore[no-untyped-call]
        self.sentinels = watchers

    async def discover_master(self, service_name: str) -> tuple[Any, Any]:
        """Host and port. Raises `MasterNotFoundError`, which counts as a lost Redis."""
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
