"""A Redis client that sends the commands of one round of the event loop in one write, over one connection.

A write is a system call, and redis-py adds a lock, a health check and its own metrics to each command. At 32 questions
at once, several are about to send a command whenever the event loop comes round. Together they cost little more than
one.

It is no transaction: Redis may run commands of other clients in between. A command that fails fails alone, a lost
connection fails all of the batch. A caller that is cancelled leaves its command to run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.connection import Connection
from redis.connection import HiredisRespSerializer
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from api.cancellation import cancel_and_wait

SEARCH: Final = "FT."
"""Commands of the search module may take long, and run in a thread of Redis. The others of a batch go first."""
_pack: Final = HiredisRespSerializer().pack


@dataclass(frozen=True, slots=True)
class _Command:
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    packed: Sequence[bytes]
    reply: asyncio.Future[Any]

    def is_search(self) -> bool:
        return str(self.arguments[0]).startswith(SEARCH)

    def fail(self, error: BaseException) -> None:
        """Raises `error` at the caller, unless it has left."""
        if not self.reply.done():
            self.reply.set_exception(error)


class BatchingRedis(Redis):
    """Batches single commands. Pipelines and subscriptions are those of redis-py."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._queue: list[_Command] = []
        self._sending: set[asyncio.Task[None]] = set()

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Runs the command with the next batch."""
        reply = asyncio.get_running_loop().create_future()
        command = _Command(args, options, _pack(*args), reply)
        if not self._queue:
            task = asyncio.create_task(self._send_queue(), name="redis-batch")
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)
        self._queue.append(command)
        return await reply

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Ends the batches in progress, and closes the connections."""
        await cancel_and_wait(self._sending)
        await super().aclose(close_connection_pool)

    async def _send_queue(self) -> None:
        batch, self._queue = self._queue, []
        if len(batch) > 1:
            batch.sort(key=_Command.is_search)
        try:
            connection: Connection = await self.connection_pool.get_connection()  # type: ignore[no-untyped-call]
            try:
                await self._exchange(connection, batch)
            finally:
                await self.connection_pool.release(connection)
        except asyncio.CancelledError:
            _fail(batch, RedisConnectionError("The client is closed."))
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the callers get it
            _fail(batch, error)

    async def _exchange(self, connection: Connection, batch: Sequence[_Command]) -> None:
        """Sends the commands and reads their replies. After any error but a refusal the connection is closed."""
        try:
            await connection.send_packed_command([b"".join([part for one in batch for part in one.packed])])
            for one in batch:
                try:
                    reply = await self.parse_response(connection, one.arguments[0], **one.options)
                except ResponseError as error:
                    one.fail(error)
                else:
                    if not one.reply.done():
                        one.reply.set_result(reply)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise


def _fail(batch: Sequence[_Command], error: Exception) -> None:
    for one in batch:
        one.fail(error)
