"""HTTP/1.1 connections to one Ollama, and their pool.

httpx and httpcore take most of a millisecond of CPU for a request, and more for each token than the rest of a stream.
Here the event loop hands the bytes to a parser in C (`httptools`), and a request is one write. A connection serves one
request at a time.

Giving back a connection never waits, so no cancellation can lose one: if the answer was read to its end, the connection
is kept; else it is closed, which stops Ollama's generation. Errors are those of httpx.
"""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, cast

import httptools
import httpx

from api.ollama.pool_statistics import RequestTrace

Header = tuple[bytes, bytes]

UNREAD_LIMIT: Final = 64 * 1024
"""Bytes that may wait for a slow reader. Then the connection reads no more, and Ollama waits."""
HEAD_LIMIT: Final = 100 * 1024
"""Bytes of a head, and of what may stand between two pieces of a body."""


class HttpConnection(asyncio.Protocol):
    """One connection. `on_lost` is called once, when it is closed."""

    def __init__(self, on_lost: Callable[[HttpConnection], None]) -> None:
        self._on_lost = on_lost
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport
        self._socket: Any = None
        self._changed: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._is_write_paused = False
        self._is_paused = False
        self._only_head = False
        self._between = 0
        self._parts: deque[bytes] = deque()
        self._unread = 0
        self._error: Callable[[], httpx.TransportError] | None = None
        """Makes the error for each caller: the traceback of one that was kept would refer to this connection."""
        self._keeps = True
        self._is_complete = True
        self._has_head = False
        self.is_silent = True
        """No byte of an answer has arrived."""
        self.status = 0
        self.headers: list[Header] = []

    @property
    def is_reusable(self) -> bool:
        """True if the answer has arrived to its end and the server keeps the connection."""
        return self._is_complete and self._keeps and not self._is_paused and not self._transport.is_closing()

    @property
    def is_readable(self) -> bool:
        """True if something arrived that the event loop has not seen: of an unused connection, its end."""
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    @property
    def is_encoded(self) -> bool:
        """True if a proxy has compressed the body."""
        return b"content-encoding" in dict(self.headers)

    def abort(self) -> None:
        """Closes the connection."""
        self._keeps = False
        self._transport.abort()

    # -- a request ----------------------------------------------------------------------------------------------------

    def send(self, request: bytes, *, only_head: bool = False) -> None:
        """Begins a request: its head, and its body or a part of it. `only_head`: the answer has no body (HEAD)."""
        self._only_head = only_head
        self._between = self._unread = 0
        self._parts.clear()
        self._is_complete = self._has_head = False
        self.is_silent = True
        self.status, self.headers = 0, []
        self._transport.write(request)

    async def send_on(self, parts: AsyncIterable[bytes], *, chunked: bool) -> None:
        """Sends the rest of the body, unless the server answers before. Then the connection is not kept."""
        async for part in parts:
            if self._has_head or self._error is not None:
                self._keeps = False
                return
            if part:
                self._transport.write(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
            if self._is_write_paused:
                self._writable = asyncio.get_running_loop().create_future()
                await self._writable
        if chunked:
            self._transport.write(b"0\r\n\r\n")

    async def head(self) -> None:
        """Waits for `status` and `headers`. Raises `httpx.TransportError`."""
        while not self._has_head:
            if self._error is not None:
                raise self._error()
            await self._next_change()

    async def part(self) -> bytes:
        """Returns what has arrived of the body, b"" at its end. Raises `httpx.TransportError`."""
        while not self._parts:
            if self._is_complete:
                return b""
            if self._error is not None:
                raise self._error()
            await self._next_change()
        part = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._unread = 0
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()
        return part

    async def parts(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises `httpx.TransportError`."""
        while part := await self.part():
            yield part

    async def _next_change(self) -> None:
        self._changed = asyncio.get_running_loop().create_future()
        try:
            await self._changed
        finally:
            self._changed = None

    # -- asyncio.Protocol ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._socket = transport.get_extra_info("socket")

    def data_received(self, data: bytes) -> None:
        if self._is_complete:  # the answer to no request
            self.abort()
            return
        self.is_silent = False
        self._between += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(f"{type(error).__name__}: {error}")
        else:
            if self._between > HEAD_LIMIT:
                self._fail(f"more than {HEAD_LIMIT} bytes without an end")
        if self._unread > UNREAD_LIMIT and not self._is_paused and not self._is_complete:
            self._is_paused = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._keeps = False
        if not self._is_complete:
            self._end(exc)
        self._wake()
        self.resume_writing()
        self._on_lost(self)
        del self._parser  # the two refer to each other

    def pause_writing(self) -> None:
        self._is_write_paused = True

    def resume_writing(self) -> None:
        self._is_write_paused = False
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    def _end(self, exc: Exception | None) -> None:
        """Decides what the end of the connection means for the answer."""
        has_length = any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers)
        if exc is None and self._has_head and not has_length:
            self._is_complete = True  # the body's end is the connection's
        elif exc is not None:
            self._error = self._error or partial(httpx.ReadError, str(exc))
        elif self._has_head:
            self._error = self._error or partial(httpx.RemoteProtocolError, "the connection ended before the answer")
        else:
            told = "Server disconnected without sending a response."
            self._error = self._error or partial(httpx.RemoteProtocolError, told)

    def _fail(self, reason: str) -> None:
        self._error = self._error or partial(httpx.RemoteProtocolError, reason)
        self.abort()

    def _wake(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    # -- httptools ----------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._is_complete:  # a second answer to one request, which is ignored
            self._keeps = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._has_head:  # else it stands behind the body
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._is_complete:
            return
        self.status = self._parser.get_status_code()
        self._between = 0
        if self.status < 200:  # such as 100 Continue: another head follows
            self.headers = []
            return
        self._has_head = True
        if self._only_head:
            self._is_complete, self._keeps = True, False  # the parser would wait for a body

    def on_body(self, part: bytes) -> None:
        self._between = 0
        if not self._is_complete:
            self._parts.append(part)
            self._unread += len(part)

    def on_message_complete(self) -> None:
        self._between = 0
        if self._has_head:
            self._is_complete = True
            self._keeps = self._keeps and self._parser.should_keep_alive()


# -- the pool ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Occupancy:
    """Connections in use and unused, and requests that wait for one."""

    active: int
    idle: int
    waiting: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """Most connections, most that are kept unused, and for how many seconds."""

    most: int
    kept: int
    kept_seconds: float


class HttpPool:
    """Connections to one address. No background task: an unused connection is closed when the next one is used.

    `patience`: seconds to wait for a free connection, and for a new one to be established.
    """

    def __init__(
        self, url: httpx.URL, sizes: Sizes, patience: tuple[float, float], tls: ssl.SSLContext | None = None
    ) -> None:
        self._host = url.raw_host.decode("ascii")
        self._port = url.port or (443 if url.scheme == "https" else 80)
        self._tls = tls
        self._sizes = sizes
        self._wait_seconds, self._connect_seconds = patience
        self._idle: dict[HttpConnection, float] = {}
        """The longest unused first, with the time since when."""
        self._busy: set[HttpConnection] = set()
        self._taken = 0
        """Connections in use or being opened. Nobody waits while there are fewer than `most`."""
        self._waiting: dict[asyncio.Future[None], None] = {}
        self._is_closed = False

    @property
    def connections(self) -> list[HttpConnection]:
        """The unused connections, the longest unused first, and those in use."""
        return [*self._idle, *self._busy]

    def occupancy(self) -> Occupancy:
        """Counts the connections in use and idle, and the waiting requests."""
        return Occupancy(self._taken, len(self._idle), len(self._waiting))

    async def take(self, trace: RequestTrace) -> HttpConnection:
        """Returns a connection, which the caller gives back. Raises `httpx.TransportError`."""
        await self._slot()
        try:
            trace.assigned()
            connection = self._reused() or await self._opened(trace)
        except BaseException:
            self._free_slot()
            raise
        self._busy.add(connection)
        return connection

    def give_back(self, connection: HttpConnection) -> None:
        """Keeps the connection, or closes it if the answer was not read to its end."""
        self._busy.discard(connection)
        if connection.is_reusable and not self._is_closed:
            self._idle[connection] = asyncio.get_running_loop().time()
            self._trim()
        else:
            connection.abort()
        self._free_slot()

    def drop_idle(self) -> None:
        """Closes every unused connection: after one of them proved dead, the others of its age are suspect."""
        idle, self._idle = self._idle, {}
        for connection in idle:
            connection.abort()

    async def aclose(self) -> None:
        """Closes all connections."""
        self._is_closed = True
        self.drop_idle()
        for connection in self._busy:
            connection.abort()

    async def _slot(self) -> None:
        """Waits until one connection more may be used."""
        if self._taken < self._sizes.most:
            self._taken += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting[turn] = None
        try:
            async with asyncio.timeout(self._wait_seconds):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._free_slot()  # it came just as the caller stopped waiting
            if isinstance(error, TimeoutError):
                raise httpx.PoolTimeout("") from error
            raise
        finally:
            self._waiting.pop(turn, None)

    def _free_slot(self) -> None:
        while self._waiting:
            turn = next(iter(self._waiting))
            del self._waiting[turn]
            if not turn.done():
                turn.set_result(None)
                return
        self._taken -= 1

    def _reused(self) -> HttpConnection | None:
        """Returns the most recently used connection: its TCP window is open."""
        self._trim()
        while self._idle:
            connection, _ = self._idle.popitem()
            if connection.is_reusable and not connection.is_readable:
                return connection
            connection.abort()
        return None

    def _trim(self) -> None:
        """Closes what is unused for too long, or too many."""
        too_old = asyncio.get_running_loop().time() - self._sizes.kept_seconds
        while self._idle:
            coldest = next(iter(self._idle))
            if len(self._idle) <= self._sizes.kept and self._idle[coldest] > too_old:
                break
            del self._idle[coldest]
            coldest.abort()

    async def _opened(self, trace: RequestTrace) -> HttpConnection:
        trace.opening()
        try:
            async with asyncio.timeout(self._connect_seconds):
                connection = await self._connected()
        except TimeoutError as error:
            raise httpx.ConnectTimeout("") from error
        except OSError as error:
            raise httpx.ConnectError(str(error)) from error
        trace.connected()
        return connection

    async def _connected(self) -> HttpConnection:
        """Tries each address of the host. One that does not answer leaves the others a share of the time."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        failed: list[OSError] = [OSError(f"no address of {self._host}")]
        try:
            for left, (*_, address) in zip(range(len(found), 0, -1), found, strict=True):
                making = loop.create_connection(
                    partial(HttpConnection, self._lost),
                    *address[:2],
                    ssl=self._tls,
                    server_hostname=self._host if self._tls is not None else None,
                )
                try:
                    async with asyncio.timeout(self._connect_seconds / left if left > 1 else None):
                        return (await making)[1]
                except OSError as error:
                    failed.append(error)
            raise failed[-1]
        finally:
            del failed

    def _lost(self, connection: HttpConnection) -> None:
        self._idle.pop(connection, None)
