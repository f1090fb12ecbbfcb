"""httpcore's connection pool with another way of handing out connections: one pass, hottest first, no lost slot.

Three faults of httpcore 1.0.9 are mended here, through its private API (pinned in pyproject.toml; a test compares
the version):

- encode/httpcore #1093 (also #658, #830, #961): a request that is cancelled between being given a connection and
  using it leaves the connection in the pool for good, neither idle nor closed. Here a connection without an owner
  that is not idle is dropped.
- `task.cancel()` in the middle of closing a response leaves its request in the pool for good: anyio's shields do not
  hold against asyncio's own cancellation. Here the slot is given back whatever interrupts the closing.
- Assigning looks at every connection for every connection and for every waiting request (quadratic, with a `poll`
  system call each): 25 ms of CPU per request at 100 connections. Here it is one pass.

Once upstream has mended these, `httpcore.AsyncConnectionPool` itself does, and this file can go.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpcore
from httpcore._async.connection_pool import AsyncPoolRequest, PoolByteStream

from api.cancellation import let_go


@dataclass(frozen=True, slots=True)
class Occupancy:
    """Connections in use and unused, and requests that wait for one."""

    active: int
    idle: int
    waiting: int


class LinearPool(httpcore.AsyncConnectionPool):
    """For asyncio and HTTP/1.1, where a connection serves one request at a time."""

    _connections: list[httpcore.AsyncConnectionInterface]
    """Idle ones first, the longest idle at the front; then those in use."""
    _requests: list[AsyncPoolRequest]

    def occupancy(self) -> Occupancy:
        """What the pool does at this moment."""
        idle = sum(connection.is_idle() for connection in self._connections)
        waiting = sum(request.is_queued() for request in self._requests)
        return Occupancy(len(self._connections) - idle, idle, waiting)

    async def drop_idle(self) -> None:
        """Closes every unused connection: after one of them proved dead, the others of its age are suspect."""
        owned = {id(request.connection) for request in self._requests}
        unused = [connection for connection in self._connections if id(connection) not in owned]
        self._connections = [connection for connection in self._connections if id(connection) in owned]
        await self._close_connections(unused)

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """As httpcore's, but the body gives its slot back even when closing it is interrupted."""
        response = await super().handle_async_request(request)
        assert isinstance(response.stream, PoolByteStream)
        body = _Body(response.stream, self)
        return httpcore.Response(
            response.status, headers=response.headers, content=body, extensions=response.extensions
        )

    def release(self, request: AsyncPoolRequest) -> list[httpcore.AsyncConnectionInterface]:
        """Takes `request` off the pool if closing its body did not; returns the connections to close."""
        if request not in self._requests:
            return []
        self._requests.remove(request)
        return self._assign_requests_to_connections()

    def _assign_requests_to_connections(self) -> list[httpcore.AsyncConnectionInterface]:
        """One pass over requests and connections; returns the connections to close. No I/O but `poll` on idle ones."""
        waiting = [request for request in self._requests if request.is_queued()]
        idle, busy, closing = self._sorted_out()
        self._trim(idle, closing)
        for request in waiting:
            connection = self._reused(idle, request, closing)
            if connection is None:
                if len(idle) + len(busy) >= self._max_connections:
                    break
                connection = self.create_connection(request.request.url.origin)
            busy.append(connection)
            request.assign_to_connection(connection)
        self._connections = idle + busy
        return closing

    def _sorted_out(self) -> tuple[list[httpcore.AsyncConnectionInterface], ...]:
        """Idle, busy, and to be closed: the last are those that no request owns and no request could use (#1093)."""
        owned = {id(request.connection) for request in self._requests}
        idle: list[httpcore.AsyncConnectionInterface] = []
        busy: list[httpcore.AsyncConnectionInterface] = []
        orphans: list[httpcore.AsyncConnectionInterface] = []
        for connection in self._connections:
            if connection.is_closed():
                continue
            if id(connection) in owned:
                busy.append(connection)
            elif connection.is_idle():
                idle.append(connection)
            else:
                orphans.append(connection)
        return idle, busy, orphans

    def _trim(
        self, idle: list[httpcore.AsyncConnectionInterface], closing: list[httpcore.AsyncConnectionInterface]
    ) -> None:
        """Drops surplus and expired idle connections from the cold end, where the first that is alive ends the search.

        Expiry costs a system call: only the coldest is asked here, and `_reused` asks the one it is about to use.
        """
        cold = max(0, len(idle) - self._max_keepalive_connections)
        while cold < len(idle) and idle[cold].has_expired():
            cold += 1
        closing.extend(idle[:cold])
        del idle[:cold]

    @staticmethod
    def _reused(
        idle: list[httpcore.AsyncConnectionInterface],
        request: AsyncPoolRequest,
        closing: list[httpcore.AsyncConnectionInterface],
    ) -> httpcore.AsyncConnectionInterface | None:
        """The connection last used (its TCP window is open, the others can expire); dead ones are closed on the way."""
        origin = request.request.url.origin
        while idle:
            connection = idle.pop()
            if not connection.has_expired() and connection.can_handle_request(origin):
                return connection
            closing.append(connection)  # expired, or of another origin: a pool of this service has only one
        return None

    async def _close_connections(self, closing: list[httpcore.AsyncConnectionInterface]) -> None:
        """Closes all of them, also when the caller is cancelled meanwhile."""
        if closing:
            task = asyncio.create_task(super()._close_connections(closing))
            let_go(task, OSError, httpcore.NetworkError)  # a connection that cannot even be closed is gone
            await asyncio.shield(task)


class _Body:
    """A response's body whose slot comes back whatever interrupts the closing."""

    def __init__(self, inner: PoolByteStream, pool: LinearPool) -> None:
        self._inner = inner
        self._pool = pool

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for part in self._inner:
                yield part
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        try:
            await self._inner.aclose()
        finally:
            closing = self._pool.release(self._inner._pool_request)
            await self._pool._close_connections(closing)
