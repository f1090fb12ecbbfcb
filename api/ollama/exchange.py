"""One request to Ollama over a connection of the pool, and its response."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, MutableMapping
from typing import Final

import httpx

from api.errors import UpstreamError, UpstreamFault, UpstreamResponse
from api.ollama import failures
from api.ollama.connections import Header, HttpConnection, HttpPool
from api.ollama.pool_statistics import RequestTrace

OnSend = Callable[[MutableMapping[str, str]], None]
"""Adds headers to a request that is about to be sent."""
JSON: Final = "application/json"
HEADERS: Final = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "ragherd"}
"""Headers of every request."""


def head_of(method: str, target: bytes, headers: Iterable[Header]) -> bytes:
    """Returns the head of a request. Raises `httpx.LocalProtocolError` if a header has a line break."""
    lines = [b"%b %b HTTP/1.1" % (method.encode("ascii"), target)]
    lines += [b"%b: %b" % header for header in headers]
    if any(b"\r" in line or b"\n" in line for line in lines):
        raise httpx.LocalProtocolError("A header has a line break.")
    return b"\r\n".join((*lines, b"", b""))


class Requests:
    """Requests to one base URL, as bytes. What they share is encoded once. `on_send`: for each POST."""

    def __init__(self, url: httpx.URL, on_send: OnSend | None = None) -> None:
        self._path = url.raw_path.rstrip(b"/")
        self._on_send = on_send
        self._fixed: list[Header] = [(b"Host", url.netloc), *_encoded(HEADERS)]
        if url.userinfo:
            credentials = f"{url.username}:{url.password}".encode()
            self._fixed.append((b"Authorization", b"Basic " + b64encode(credentials)))

    def get(self, path: str) -> bytes:
        """Returns a GET."""
        return head_of("GET", self._path + path.encode("ascii"), self._fixed)

    def post(self, path: str, body: bytes, content_type: str = JSON) -> bytes:
        """Returns a POST with its body."""
        headers = {"Content-Type": content_type, "Content-Length": str(len(body))}
        if self._on_send is not None:
            self._on_send(headers)
        return head_of("POST", self._path + path.encode("ascii"), [*self._fixed, *_encoded(headers)]) + body


def _encoded(headers: Mapping[str, str]) -> list[Header]:
    return [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers.items()]


class PoolTransport(httpx.AsyncBaseTransport):
    """Lets an `httpx.AsyncClient` use the pool."""

    def __init__(self, pool: HttpPool) -> None:
        self._pool = pool

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Sends a request, and waits for the head of the response."""
        head = head_of(request.method, request.url.raw_path, request.headers.raw)
        connection = await self._pool.take(RequestTrace())
        try:
            connection.send(head, only_head=request.method == "HEAD")
            assert isinstance(request.stream, httpx.AsyncByteStream)
            await connection.send_on(request.stream, chunked="transfer-encoding" in request.headers)
            await connection.head()
        except BaseException:
            self._pool.give_back(connection)
            raise
        return httpx.Response(connection.status, headers=connection.headers, stream=_Body(self._pool, connection))

    async def aclose(self) -> None:
        await self._pool.aclose()


class _Body(httpx.AsyncByteStream):
    """The body of a response. It gives the connection back, once, when it is closed."""

    def __init__(self, pool: HttpPool, connection: HttpConnection) -> None:
        self._pool = pool
        self._connection: HttpConnection | None = connection

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self._connection is not None and (part := await self._connection.part()):
            yield part

    async def aclose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._pool.give_back(connection)


def let_go(response: httpx.Response) -> None:
    """Lets go of the body of a response that was read: httpx's refers to its response. Such rings are freed late."""
    response.stream = httpx.ByteStream(b"")


ERROR_BODY_LIMIT: Final = 64 * 1024
"""Bytes of an error's body that are read: a proxy may send anything."""


class Exchange:
    """One request and its response. Made by `OllamaPool.exchange`, which also translates what is raised in here."""

    def __init__(self, pool: HttpPool, request: bytes, trace: RequestTrace, path: str, model: str) -> None:
        self._pool = pool
        self._request = request
        self._trace = trace
        self._path = path
        self._model = model
        self._connection: HttpConnection | None = None

    async def open(self, *, forwarded: bool = False) -> None:
        """Sends the request and waits for the head of a good answer. Raises `UpstreamError` for any other.

        The error of a `forwarded` request has Ollama's response, for the client.
        """
        connection = self._connection = await self._pool.take(self._trace)
        self._trace.sent = True
        connection.send(self._request)
        try:
            await connection.head()
        finally:
            if not connection.is_silent:
                self._trace.answered()
        if not 200 <= connection.status < 300:
            raise self._failure(connection, await self._beginning(), forwarded=forwarded)

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
        """The answer's body as it comes, decoded if a proxy has compressed it."""
        connection = self._connection
        assert connection is not None, "open() comes first"
        if connection.is_encoded:
            return httpx.Response(200, headers=connection.headers, stream=_Parts(connection)).aiter_bytes()
        return connection.parts()

    def failure(self, error: httpx.HTTPError) -> UpstreamError:
        """Translates what httpx raised."""
        return failures.from_exception(error, stale=self._trace.went_stale)

    def close(self) -> None:
        """Ends the exchange. An answer not read to its end costs its connection, which stops Ollama's generation."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._pool.give_back(connection)

    def _failure(self, connection: HttpConnection, body: bytes, *, forwarded: bool) -> UpstreamError:
        headers = httpx.Headers(connection.headers)
        error = failures.from_response(connection.status, headers, body, path=self._path, model=self._model)
        if forwarded:
            kind = headers.get("content-type", "application/json")
            error.response = UpstreamResponse(connection.status, kind, body)
        return error

    async def _beginning(self) -> bytes:
        body = bytearray()
        async for part in self.parts():
            body += part
            if len(body) >= ERROR_BODY_LIMIT:
                break
        return bytes(body[:ERROR_BODY_LIMIT])


class _Parts(httpx.AsyncByteStream):
    """The body as httpx decodes it."""

    def __init__(self, connection: HttpConnection) -> None:
        self._connection = connection

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._connection.parts()
