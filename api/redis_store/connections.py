"""How commands reach Redis: patient timeouts, and one write for all commands of a round of the event loop.

The timeouts of `LagTolerantConnection` ignore the worker's own lag, so a busy worker does not take Redis for lost.
redis-py sends through `asyncio.wait_for`. On Python 3.11 it loses a cancellation that arrives just as the command has
been written, and it costs a task per command. So redis-py gets no timeout; each wait has a `LagTimeout` instead.

`BatchingRedis` sends the commands of one round together. A write is a system call, and redis-py adds a lock, a health
check and its own metrics to each command. At 32 questions at once, several are about to send a command whenever the
event loop comes round. Together they cost little more than one. They share the timer for their replies too.

A batch is no transaction: Redis may run commands of other clients in between. A command that fails fails alone, a lost
connection fails all of the batch. A caller that is cancelled leaves its command to run.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import Context
from dataclasses import dataclass
from typing import Any, Final, Self, cast

from hiredis import pack_command
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection, Connection
from redis.commands.core import AsyncScript
from redis.connection import HiredisRespSerializer
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from api.cancellation import LagTimeout, cancel_and_wait
from api.errors import without_frames

SEARCH: Final = "FT."
"""Commands of the search module may take long, and run in a thread of Redis. The others of a batch go first."""
_pack: Final = HiredisRespSerializer().pack
_EVALUATE: Final = ("EVALSHA",)
A_DAY: Final = 86_400.0
"""Seconds that a connection without a timeout waits."""
MOST_IDLE: Final = 8
"""Tasks of a client that wait for the next batch. A new task for each would cost every command."""
IDLE_SECONDS: Final = 60.0
"""Tasks and connections that nothing has needed for this long are closed. Each connection costs Redis memory too."""
CLOSED: Final = "The client is closed."
ROOM: Final = 16 * 1024
"""Largest write (bytes) that never has to wait: buffers of asyncio and uvloop are at least four times as large."""


class LagTolerantConnection(AbstractConnection):
    """A mixin for redis-py's connection classes; list it first.

    `socket_timeout` applies to each write and to the wait for its reply (s).
    """

    def __init__(self, *, socket_timeout: float | None = None, **options: Any) -> None:
        super().__init__(socket_timeout=None, **options)
        self._timeout = socket_timeout

    @contextmanager
    def replies(self) -> Iterator[Callable[[], Awaitable[Any]]]:
        """Yields a function that returns the next reply, within `socket_timeout`. A refusal is a reply too.

        One timer serves all replies. An error leaves the connection unusable: close it.
        """
        try:
            with LagTimeout(A_DAY if self._timeout is None else self._timeout) as limit:
                is_first = True

                async def read() -> Any:
                    nonlocal is_first
                    if not is_first:
                        limit.restart()
                    is_first = False
                    return await self._read_response_from_parser()

                yield read
        except TimeoutError as late:
            late.__traceback__ = None  # its frames refer to those of `contextlib`, and these to it
            raise RedisTimeoutError(f"Timeout reading from {self._host_error()}") from None
        except OSError as error:
            detail = f"Error while reading from {self._host_error()}: {error}"
            raise RedisConnectionError(detail) from error.with_traceback(None)  # as above

    async def _connect(self) -> None:
        """Connects like redis-py, which handles the `TimeoutError`."""
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
        """Sends like redis-py. If it must connect first, that has a separate timeout."""
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
        """Returns whether the write fits into an empty buffer, as nearly all do."""
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
        """Reads like redis-py. A `timeout` of the caller replaces this connection's."""
        options: dict[str, Any] = {"disconnect_on_error": disconnect_on_error, "push_request": push_request}
        if timeout is not None or self._timeout is None:
            return await super().read_response(disable_decoding, timeout, **options)
        try:
            with LagTimeout(self._timeout):
                return await super().read_response(disable_decoding, **options)
        except TimeoutError:
            raise RedisTimeoutError(f"Timeout reading from {self._host_error()}") from None


@dataclass(slots=True)
class _Command:
    """One command, or several of one caller, a search last: then `reply` gets a list.

    `options`: for redis-py to parse the reply. None: the caller gets it as it is.
    """

    names: Sequence[str]
    options: dict[str, Any] | None
    packed: list[bytes]
    reply: asyncio.Future[Any]

    def is_search(self) -> bool:
        return str(self.names[-1]).startswith(SEARCH)

    def end(self, reply: Any) -> None:
        """Hands over the reply or the refusal, unless the caller has left."""
        if self.reply.done():
            return
        if isinstance(reply, ResponseError):
            self.reply.set_exception(reply)
        else:
            self.reply.set_result(reply)

    def fail(self, error: BaseException) -> None:
        """Raises `error` at the caller, unless it has left."""
        if not self.reply.done():
            self.reply.set_exception(error)


def _replies(connection: Connection) -> AbstractContextManager[Callable[[], Awaitable[Any]]]:
    """Reads replies. Connections of redis-py have their own timeout for each."""
    if isinstance(connection, LagTolerantConnection):
        return connection.replies()

    async def read() -> Any:
        try:
            return await connection.read_response()
        except ResponseError as error:
            return error

    return nullcontext(read)


class _Received:
    """A reply or refusal that was read, for redis-py to parse in place of a connection."""

    __slots__ = ("_reply",)

    def __init__(self, reply: Any) -> None:
        self._reply = reply

    async def read_response(self, **_: Any) -> Any:
        if isinstance(self._reply, ResponseError):
            raise self._reply
        return self._reply


class BatchingRedis(Redis):
    """Batches single commands. Pipelines and subscriptions are those of redis-py."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._queue: list[_Command] = []
        self._sending: set[asyncio.Task[None]] = set()
        self._idle: list[asyncio.Future[bool]] = []
        """Wakes the senders that have nothing to send: True if there is something again, False to end."""
        self._spare_senders = self._spare_connections = 0
        """The fewest that were idle at a time since `_close_spare`. They are used last in, first out."""
        self._next_check = 0.0
        self._closing = False

    @classmethod
    def from_url(
        cls,
        url: str,
        single_connection_client: bool = False,
        auto_close_connection_pool: bool | None = None,
        **options: Any,
    ) -> Self:
        """As redis-py does, whose annotation says that the client is a plain one."""
        return cast(Self, super().from_url(url, single_connection_client, auto_close_connection_pool, **options))

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Runs the command with the next batch."""
        return await self._queued(args[:1], options, [*_pack(*args)])

    async def execute_together(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Runs two or more commands with the next batch.

        Replies are as Redis sends them. A refused command has its error as the reply.
        """
        packed = [part for one in commands for part in _pack(*one)]
        replies: list[Any] = await self._queued([one[0] for one in commands], None, packed)
        return replies

    async def evaluate(self, sha: str, keys: Sequence[Any], arguments: Iterable[Any]) -> Any:
        """Runs a script that Redis knows, with the next batch. The reply is as Redis sends it."""
        return await self._queued(_EVALUATE, None, [pack_command(("EVALSHA", sha, len(keys), *keys, *arguments))])

    def _queued(self, names: Sequence[str], options: dict[str, Any] | None, packed: list[bytes]) -> asyncio.Future[Any]:
        reply = asyncio.get_running_loop().create_future()
        if self._closing:
            reply.set_exception(RedisConnectionError(CLOSED))
            return reply
        if not self._queue:
            self._wake_sender()
        self._queue.append(_Command(names, options, packed, reply))
        return reply

    def _wake_sender(self) -> None:
        """Lets a sender take the queue in the event loop's next round."""
        while self._idle:
            waiting = self._idle.pop()
            if not waiting.done():
                waiting.set_result(True)
                self._spare_senders = min(self._spare_senders, len(self._idle))
                return
        self._spare_senders = 0
        # It outlives the request that starts it, and does not belong to that request's trace or log lines.
        task = asyncio.create_task(self._keep_sending(), name="redis-batches", context=Context())
        self._sending.add(task)
        task.add_done_callback(self._sender_ended)

    def _sender_ended(self, task: asyncio.Task[None]) -> None:
        """Lets another sender take what a cancelled one was woken for."""
        self._sending.discard(task)
        if self._queue and task.cancelled() and not self._closing:
            self._wake_sender()

    async def _keep_sending(self) -> None:
        """Sends one batch after another. The connection is returned in between."""
        goes_on = True
        while goes_on:
            await self._send_queue()
            if len(self._idle) >= MOST_IDLE:
                return
            if time.monotonic() >= self._next_check:
                await self._close_spare()
            waiting = asyncio.get_running_loop().create_future()
            self._idle.append(waiting)
            goes_on = await waiting

    async def _close_spare(self) -> None:
        """Ends the senders and closes the connections that were idle all the time since the last call."""
        self._next_check = time.monotonic() + IDLE_SECONDS
        connections = self._idle_connections
        senders, unused = self._idle[: self._spare_senders], connections[: self._spare_connections]
        del self._idle[: len(senders)], connections[: len(unused)]
        self._spare_senders, self._spare_connections = len(self._idle), len(connections)
        for waiting in senders:
            if not waiting.done():
                waiting.set_result(False)
        for connection in unused:
            with suppress(RedisError, OSError, TimeoutError):  # dropped if it does not close in time
                await connection.disconnect(nowait=True)

    @property
    def _idle_connections(self) -> list[Connection]:
        return cast(list[Connection], self.connection_pool._get_free_connections())

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Ends the batches in progress and the senders, and closes the connections."""
        self._closing = True
        try:
            await cancel_and_wait(self._sending)
        finally:
            self._closing = False
            batch, self._queue = self._queue, []
            _fail(batch, RedisConnectionError(CLOSED))
        await super().aclose(close_connection_pool)

    async def _send_queue(self) -> None:
        batch, self._queue = self._queue, []
        if not batch:
            return
        try:
            if len(batch) > 1:
                batch.sort(key=_Command.is_search)
            connection: Connection = await self.connection_pool.get_connection()  # type: ignore[no-untyped-call]
            self._spare_connections = min(self._spare_connections, len(self._idle_connections))
            try:
                await self._exchange(connection, batch)
            finally:
                await self.connection_pool.release(connection)
        except asyncio.CancelledError:
            _fail(batch, RedisConnectionError(CLOSED))
            raise
        except (RedisError, OSError) as error:
            _fail(batch, without_frames(error))  # they refer to the batch
        except Exception as error:  # noqa: BLE001 - whatever it is, the callers get it
            _fail(batch, error)

    async def _exchange(self, connection: Connection, batch: Sequence[_Command]) -> None:
        """Sends the commands and reads their replies. If a reply cannot be read, the connection is closed."""
        try:
            await connection.send_packed_command([b"".join([part for one in batch for part in one.packed])])
            with _replies(connection) as read:
                for one in batch:
                    if len(one.names) > 1:
                        one.end([await read() for _ in one.names])
                    elif one.options is None:
                        one.end(await read())
                    else:
                        await self._parse(one, one.options, await read())
        except BaseException:
            await connection.disconnect(nowait=True)
            raise

    async def _parse(self, one: _Command, options: dict[str, Any], reply: Any) -> None:
        """Lets redis-py parse a reply. If that fails, the command fails alone: the connection is in order."""
        try:
            parsed = await self.parse_response(cast(Connection, _Received(reply)), one.names[0], **options)
        except Exception as error:  # noqa: BLE001 - a refusal, or a reply that is not what it should be
            one.fail(error.with_traceback(None))  # it refers to frames that have the error
        else:
            one.end(parsed)


def _fail(batch: Sequence[_Command], error: Exception) -> None:
    for one in batch:
        one.fail(error)


class BatchedScript(AsyncScript):
    """A script whose calls join a batch, without what redis-py does around each."""

    async def __call__(
        self, keys: Sequence[Any] | None = None, args: Iterable[Any] | None = None, client: Any = None
    ) -> Any:
        """Sends its SHA-1. Leaves a client of another kind, and a Redis that lacks the script, to redis-py."""
        to = self.registered_client if client is None else client
        if isinstance(to, BatchingRedis):
            with suppress(NoScriptError):
                return await to.evaluate(self.sha, keys or (), args or ())
        return await super().__call__(keys, args, client)
