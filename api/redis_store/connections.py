"""Connections to Redis whose waits end by a `LagTimeout`: a busy worker does not take its own lag for a slow Redis.

redis-py sends through `asyncio.wait_for`, which on Python 3.11 loses a cancellation that comes just as the command has
been written, and costs a task for each command. Neither happens here: redis-py gets no timeout, each wait has ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection, Connection, UnixDomainSocketConnection
from redis.asyncio.sentinel import SentinelManagedConnection
from redis.exceptions import TimeoutError as RedisTimeoutError

from api.lag_timeout import LagTimeout

ROOM: Final = 16 * 1024
"""Bytes that a buffer takes before a writer must wait: asyncio and uvloop have at least four times as many."""


class PatientConnection(AbstractConnection):
    """To be mixed in before one of redis-py's classes. `socket_timeout` is for a write, and for the reply to it."""

    def __init__(self, *, socket_timeout: float | None = None, **options: Any) -> None:
        super().__init__(socket_timeout=None, **options)
        self._patience = socket_timeout

    async def _connect(self) -> None:
        """As redis-py, which takes its `TimeoutError` for what it is."""
        patience = self.socket_connect_timeout
        if patience is None:
            await super()._connect()  # type: ignore[safe-super, no-untyped-call]
            return
        self.socket_connect_timeout = None
        try:
            with LagTimeout(patience):
                await super()._connect()  # type: ignore[safe-super, no-untyped-call]
        finally:
            self.socket_connect_timeout = patience

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        """As redis-py. Connecting, where that is needed first, has its own timeout."""
        if not self.is_connected:
            await self.connect_check_health(check_health=False)
        if self._patience is None or self._cannot_wait(command):
            await super().send_packed_command(command, check_health)
            return
        try:
            with LagTimeout(self._patience):
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
        if timeout is not None or self._patience is None:
            return await super().read_response(disable_decoding, timeout, **options)
        try:
            with LagTimeout(self._patience):
                return await super().read_response(disable_decoding, **options)
        except TimeoutError:
            raise RedisTimeoutError(f"Timeout reading from {self._host_error()}") from None


class TcpConnection(PatientConnection, Connection):
    """To a host and port."""


class UnixConnection(PatientConnection, UnixDomainSocketConnection):
    """To a socket in the file system."""


class SentinelTcpConnection(SentinelManagedConnection, TcpConnection):
    """To whichever server the Sentinels call the primary."""
