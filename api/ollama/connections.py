"""httpcore's connection pool with linear-time assignment, and metrics of each request.

This fixes four bugs of httpcore 1.0.9 through its private API (pinned in pyproject.toml; a test compares
the version):

- encode/httpcore #1093 (also #658, #830, #961): a request that is cancelled between being given a connection and
  using it leaves the connection in the pool forever, neither idle nor closed. Here a connection without an owner
  that is not idle is dropped.
- `task.cancel()` in the middle of closing a response leaves its request in the pool forever: anyio's shields do not
  hold against asyncio's own cancellation. Here the slot is given back whatever interrupts the closing.
- Assigning looks at every connection for every connection and for every waiting request (quadratic, with a `poll`
  system call each): 25 ms of CPU per request at 100 connections. Here it is one pass.
- anyio's locks yield to the event loop even when they are free, which costs three iterations of the loop per request. A
  connection that serves one request at a time gets locks that do not.

It also sends the head of a request together with its body, which httpcore writes one after the other.

Once upstream has fixed these, `httpcore.AsyncConnectionPool` can replace `LinearPool`.

`PoolStatistics` has the field names of GET /api/connection-pool/metrics.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import httpcore
import httpx
from httpcore._async.connection_pool import AsyncPoolRequest, PoolByteStream
from httpcore._backends.auto import AutoBackend

from api.cancellation import log_failure
from api.errors import UpstreamError, UpstreamFault, UpstreamResponse
from api.ollama import failures
from api.values import GenerationEnd


@dataclass(frozen=True, slots=True)
class Occupancy:
    """Connections in use and unused, and requests that wait for one."""

    active: int
    idle: int
    waiting: int


JOINED_BYTES: Final = 64 * 1024
"""A longer body is not copied behind its head."""


class JoinedWrites(httpcore.AsyncNetworkStream):
    """Sends the head of a request with the first part of its body: one system call, and one packet to the server.

    httpcore writes the head, then each part of the body, then its end, which may be empty. Then it reads.
    """

    def __init__(self, inner: httpcore.AsyncNetworkStream) -> None:
        self._inner = inner
        self._head: bytes | None = None
        self._begins = True

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 - of httpcore
        """Keeps the first write after a read, until the next one."""
        if self._begins:
            self._begins, self._head = False, buffer
            return
        head, self._head = self._head, None
        if head is not None and len(buffer) <= JOINED_BYTES:
            buffer = head + buffer
        elif head is not None:
            await self._inner.write(head, timeout)
        await self._inner.write(buffer, timeout)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - of httpcore
        """Reads. A head that nothing followed is sent first."""
        head, self._head, self._begins = self._head, None, True
        if head is not None:
            await self._inner.write(head, timeout)
        return await self._inner.read(max_bytes, timeout)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - of httpcore
    ) -> httpcore.AsyncNetworkStream:
        """Returns the encrypted stream, which joins writes too."""
        return JoinedWrites(await self._inner.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _JoiningBackend(AutoBackend):
    """Opens TCP connections with `JoinedWrites`."""

    async def connect_tcp(self, *arguments: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        """Connects like httpcore."""
        return JoinedWrites(await super().connect_tcp(*arguments, **options))


class LinearPool(httpcore.AsyncConnectionPool):
    """A pool for asyncio and HTTP/1.1, where a connection serves one request at a time."""

    _connections: list[httpcore.AsyncConnectionInterface]
    """Idle ones first, the longest idle at the front; then those in use."""
    _requests: list[AsyncPoolRequest]

    def occupancy(self) -> Occupancy:
        """Counts the connections in use and idle, and the waiting requests."""
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
        """Handles a request as httpcore does, but releases its connection even if closing the body is interrupted."""
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

    def create_connection(self, origin: httpcore.Origin) -> httpcore.AsyncConnectionInterface:
        """With a lock that does not give up the event loop while it is free, as anyio's does."""
        connection = super().create_connection(origin)
        connection._network_backend = _JoiningBackend()  # type: ignore[attr-defined]
        connection._request_lock = asyncio.Lock()  # type: ignore[attr-defined]
        return connection

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
        """Returns the most recently used connection (its TCP window is open), and adds dead ones to `closing`."""
        origin = request.request.url.origin
        while idle:
            connection = idle.pop()
            if not connection.has_expired() and connection.can_handle_request(origin):
                connection._connection._state_lock = asyncio.Lock()  # type: ignore[attr-defined]
                return connection
            closing.append(connection)  # expired, or of another origin: a pool of this service has only one
        return None

    async def _close_connections(self, closing: list[httpcore.AsyncConnectionInterface]) -> None:
        """Closes all of them, also when the caller is cancelled meanwhile."""
        if closing:
            task = asyncio.create_task(super()._close_connections(closing))
            log_failure(task, OSError, httpcore.NetworkError)  # a connection that cannot even be closed is gone
            await asyncio.shield(task)


class _Body:
    """A response body that releases its connection even if closing it is interrupted."""

    def __init__(self, inner: PoolByteStream, pool: LinearPool) -> None:
        self._inner = inner
        self._pool = pool

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Iterates over the body. The reader must close it: httpx does at the end, `Exchange` in any case."""
        return self._inner.__aiter__()

    async def aclose(self) -> None:
        try:
            await self._inner.aclose()
        finally:
            closing = self._pool.release(self._inner._pool_request)
            await self._pool._close_connections(closing)


class RequestTrace:
    """The callback of httpx's `trace` extension. Times are seconds since the request began; None: not reached."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._connecting_at: float | None = None
        self.wait: float | None = None
        """Seconds until a connection was assigned: the first event of any kind."""
        self.connect: float | None = None
        """The TCP handshake, and TLS if there is any."""
        self.first_byte: float | None = None
        """Seconds until the head of the response was read."""
        self.opened = False
        """The request was given a new connection, which then was established or not."""
        self.sent = False
        """The request began to be written, over a connection new or reused."""

    async def __call__(self, event: str, info: Mapping[str, Any]) -> None:
        """Called by httpcore before and after each stage."""
        now = self.elapsed
        if self.wait is None:
            self.wait = now
        if event == "connection.connect_tcp.started":
            self.opened = True
            self._connecting_at = now
        elif event in {"connection.connect_tcp.complete", "connection.start_tls.complete"}:
            self.connect = now - (self._connecting_at or 0.0)
        elif event == "http11.send_request_headers.started":
            self.sent = True
        elif event == "http11.receive_response_headers.complete":
            self.first_byte = now

    @property
    def elapsed(self) -> float:
        """Seconds since the request began."""
        return time.perf_counter() - self._began

    @property
    def reused(self) -> bool:
        """True if the request used a connection that had served another."""
        return self.sent and not self.opened

    @property
    def went_stale(self) -> bool:
        """True if a connection that broke was reused and had received no byte of the response."""
        return self.reused and self.first_byte is None


RECENT: Final = 1024
"""Number of an endpoint's last requests that its percentiles cover."""


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Percentiles of the last `RECENT` requests, in milliseconds; zeros while there are none."""

    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0


@dataclass(frozen=True, slots=True)
class EndpointSnapshot:
    """Metrics of one path of Ollama's API. Plain times are medians in milliseconds; `latency_ms` is to the last byte.

    In order: `wait_ms` for a connection, `connect_ms` where a new one was opened, `time_to_first_byte_ms` from the
    request's beginning to the head of the answer, `transfer_ms` from there to the end.
    """

    requests: int
    errors: int
    latency_ms: Percentiles
    connect_ms: float
    time_to_first_byte_ms: float
    wait_ms: float
    transfer_ms: float


@dataclass(frozen=True, slots=True)
class OllamaFigures:
    """Ollama's own figures about its generations since the worker's start. Seconds and tokens are totals.

    `tokens_per_second` covers writing, `prompt_tokens_per_second` reading; 0 before the first generation.
    """

    generations: int = 0
    load_seconds: float = 0.0
    prompt_seconds: float = 0.0
    generation_seconds: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_per_second: float = 0.0
    tokens_per_second: float = 0.0


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """Metrics of one worker's connections to one Ollama. Counts are since the worker's start.

    Connections opened at start count in `connections_opened`; the probes that open them do not count in `requests`.
    """

    pool_connections: int
    pool_maxsize: int
    max_keepalive_connections: int
    keepalive_expiry: float
    active: int
    idle: int
    waiting: int
    requests: int
    connections_opened: int
    connections_reused: int
    reuse_rate: float
    pool_timeouts: int
    wait_ms: Percentiles
    endpoints: Mapping[str, EndpointSnapshot]
    ollama: OllamaFigures = field(default_factory=OllamaFigures)


class RecentTimes:
    """The last `RECENT` times, added in seconds and reported in milliseconds."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=RECENT)

    def add(self, seconds: float | None) -> None:
        """Adds a time; ignores None (a stage that was not reached)."""
        if seconds is not None:
            self._seconds.append(seconds)

    def percentiles(self) -> Percentiles:
        """Nearest-rank percentiles."""
        ordered = sorted(self._seconds)
        if not ordered:
            return Percentiles()
        last = len(ordered) - 1
        return Percentiles(*(round(ordered[round(last * share)] * 1000, 3) for share in (0.50, 0.95, 0.99)))


@dataclass(slots=True)
class _Endpoint:
    requests: int = 0
    errors: int = 0
    latency: RecentTimes = field(default_factory=RecentTimes)
    connect: RecentTimes = field(default_factory=RecentTimes)
    first_byte: RecentTimes = field(default_factory=RecentTimes)
    wait: RecentTimes = field(default_factory=RecentTimes)
    transfer: RecentTimes = field(default_factory=RecentTimes)

    def snapshot(self) -> EndpointSnapshot:
        return EndpointSnapshot(
            requests=self.requests,
            errors=self.errors,
            latency_ms=self.latency.percentiles(),
            connect_ms=self.connect.percentiles().p50,
            time_to_first_byte_ms=self.first_byte.percentiles().p50,
            wait_ms=self.wait.percentiles().p50,
            transfer_ms=self.transfer.percentiles().p50,
        )


class PoolStatistics:
    """Counts finished requests, for itself and for `total`. No I/O; bounded memory."""

    def __init__(self, total: PoolStatistics | None = None) -> None:
        self._total = total
        self._ollama = OllamaFigures()
        self.requests = 0
        self.connections_opened = 0
        self.connections_reused = 0
        self.pool_timeouts = 0
        self._wait = RecentTimes()
        self._endpoints: dict[str, _Endpoint] = {}

    def opened_at_start(self, trace: RequestTrace) -> None:
        """A probe that only opens a connection."""
        self.connections_opened += trace.connect is not None
        if self._total is not None:
            self._total.opened_at_start(trace)

    def generated(self, end: GenerationEnd) -> None:
        """A generation came to its end."""
        before = self._ollama
        self._ollama = OllamaFigures(
            generations=before.generations + 1,
            load_seconds=before.load_seconds + end.load_duration,
            prompt_seconds=before.prompt_seconds + end.prompt_eval_duration,
            generation_seconds=before.generation_seconds + end.eval_duration,
            prompt_tokens=before.prompt_tokens + end.usage.prompt_tokens,
            completion_tokens=before.completion_tokens + end.usage.completion_tokens,
        )
        if self._total is not None:
            self._total.generated(end)

    def ollama(self) -> OllamaFigures:
        """Ollama's own figures, its speeds worked out."""
        totals = self._ollama
        return replace(
            totals,
            load_seconds=round(totals.load_seconds, 6),
            prompt_seconds=round(totals.prompt_seconds, 6),
            generation_seconds=round(totals.generation_seconds, 6),
            prompt_tokens_per_second=_rate(totals.prompt_tokens, totals.prompt_seconds),
            tokens_per_second=_rate(totals.completion_tokens, totals.generation_seconds),
        )

    def finished(self, path: str, trace: RequestTrace, *, failed: bool, pool_timeout: bool) -> None:
        """Counts a request that ended: complete, failed, or left by its caller, which does not count as a failure."""
        self.requests += 1
        self.connections_opened += trace.connect is not None
        self.connections_reused += trace.reused
        self.pool_timeouts += pool_timeout
        waited = trace.elapsed if trace.wait is None else trace.wait
        self._wait.add(waited)
        endpoint = self._endpoints.setdefault(path, _Endpoint())
        endpoint.requests += 1
        endpoint.errors += failed
        endpoint.latency.add(trace.elapsed)
        endpoint.connect.add(trace.connect)
        endpoint.first_byte.add(trace.first_byte)
        endpoint.wait.add(waited)
        endpoint.transfer.add(None if trace.first_byte is None else trace.elapsed - trace.first_byte)
        if self._total is not None:
            self._total.finished(path, trace, failed=failed, pool_timeout=pool_timeout)

    @property
    def reuse_rate(self) -> float:
        """Share of requests that used an open connection; 0 while there are none."""
        return round(self.connections_reused / self.requests, 4) if self.requests else 0.0

    def wait_ms(self) -> Percentiles:
        """Returns the percentiles of recent waits for a connection."""
        return self._wait.percentiles()

    def endpoints(self) -> dict[str, EndpointSnapshot]:
        """Returns the metrics by path, such as `/api/chat`."""
        return {path: endpoint.snapshot() for path, endpoint in self._endpoints.items()}


def _rate(tokens: int, seconds: float) -> float:
    return round(tokens / seconds, 3) if seconds else 0.0


ERROR_BODY_LIMIT: Final = 64 * 1024
"""Bytes of an error's body that are read: a proxy may send anything."""


class Exchange:
    """Made by `OllamaPool.exchange`, which also translates what is raised in here."""

    def __init__(self, client: httpx.AsyncClient, request: httpx.Request, path: str, model: str) -> None:
        self._client = client
        self._request = request
        self._path = path
        self._model = model
        self._response: httpx.Response | None = None

    async def open(self, *, forwarded: bool = False) -> None:
        """Sends the request and waits for the head of a good answer. Raises `UpstreamError` for any other.

        The error of a `forwarded` request has Ollama's response, for the client.
        """
        response = self._response = await self._client.send(self._request, stream=True)
        if not response.is_success:
            body = await _beginning(response)
            error = failures.from_response(
                response.status_code, response.headers, body, path=self._path, model=self._model
            )
            if forwarded:
                kind = response.headers.get("content-type", "application/json")
                error.response = UpstreamResponse(response.status_code, kind, body)
            raise error

    async def read(self, limit: int) -> bytes:
        """The whole answer. Raises `UpstreamError` when it is longer than `limit` bytes."""
        parts: list[bytes] = []
        size = 0
        async for part in self.parts():
            size += len(part)
            if size > limit:
                raise UpstreamError(UpstreamFault.INVALID_RESPONSE, f"Ollama's answer is longer than {limit} bytes.")
            parts.append(part)
        return b"".join(parts)

    def parts(self) -> AsyncIterator[bytes]:
        """The answer's body as it comes."""
        assert self._response is not None, "open() comes first"
        return self._response.aiter_bytes()

    async def aclose(self) -> None:
        """Ends the exchange. An answer not read to its end costs its connection, which stops Ollama's generation."""
        if self._response is not None:
            await self._response.aclose()


async def _beginning(response: httpx.Response) -> bytes:
    body = bytearray()
    async for part in response.aiter_bytes():
        body += part
        if len(body) >= ERROR_BODY_LIMIT:
            break
    return bytes(body[:ERROR_BODY_LIMIT])
