"""HTTP/1.1 connections that report their phase to the guard, and the sockets of the master.

`PlainProtocol` corrects three behaviors of uvicorn: it drops the body of a request that offers another protocol, as
Java's client does at first (`Upgrade: h2c`), it buffers an endless head without limit, and it takes the fields behind a
body in chunks for part of the head, though the head has been checked already (RFC 9110, section 6.5.1).

`TimedProtocol` reports its phase, so that the guard can close connections that keep a worker waiting, and a draining
worker can close quiet ones. uvicorn would close every connection without a request at once. A request may be in transit
on a connection that was just accepted or is about to be reused, and would be lost.

`OneWrite` sends a response's head together with its body, which uvicorn writes separately.

A request whose bytes equal those of an earlier one is not even parsed: `api.endpoints.fast_path` knows its answer. The
parser's state says nothing about such a request, because it begins and ends where the parser stands between two.

`refusal` answers requests that reach no application, in the same form as every other error.

`listen` finds ports that are in use before anything starts, and reports them in one line.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import uuid
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final, Protocol, cast

import httptools
import orjson
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from worker_config.connection_guard import ConnectionGuard, Phase


def refusal(status: HTTPStatus, detail: str, worker: str) -> bytes:
    """Returns a response that closes the connection, because the start of the next request is unknown."""
    request_id = uuid.uuid4().hex
    body = orjson.dumps(
        {
            "type": "about:blank",
            "title": status.phrase,
            "status": status,
            "detail": detail,
            "instance": "/",
            "request_id": request_id,
        }
    )
    head = (
        f"HTTP/1.1 {status} {status.phrase}",
        "content-type: application/problem+json",
        f"content-length: {len(body)}",
        "connection: close",
        f"x-request-id: {request_id}",
        f"x-worker: {worker}",
        *(["retry-after: 1"] if status == HTTPStatus.SERVICE_UNAVAILABLE else []),
    )
    return "\r\n".join((*head, "", "")).encode() + body


MAX_HEAD_BYTES: Final = 1 << 16
"""Limit for an incomplete head, or for what follows the last chunk."""


class OneWrite:
    """Where uvicorn writes one response. It holds the head until the body follows, or until the loop's next round.

    Each write is a system call and a packet.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head: bytes | None = None

    def write(self, data: bytes) -> None:
        if self._head is None:
            self._head = data
            self._loop.call_soon(self._flush)
        elif self._head:
            head, self._head = self._head, b""
            self._transport.write(head + data)
        else:
            self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def _flush(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)


class PlainProtocol(HttpToolsProtocol):
    """uvicorn's connection, but offers of another protocol are ignored (RFC 9110, section 7.8)."""

    _unfinished = 0
    """Bytes received since the last complete element."""
    _in_head = False

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._unfinished += len(data)
        try:
            while data:
                data = self._parse(data)
        except httptools.HttpParserError:
            self._refuse(HTTPStatus.BAD_REQUEST, "This is not an HTTP request.")
        else:
            if self._unfinished > MAX_HEAD_BYTES:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "The request head is too large.")

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._unfinished = 0
        self._in_head = False
        if not self._is_upgrade_offer():
            before = self.cycle
            super().on_headers_complete()
            if self.cycle is not before:
                self.cycle.transport = cast(asyncio.Transport, OneWrite(self.transport, self.loop))

    def on_body(self, body: bytes) -> None:
        self._unfinished = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unfinished = 0
        if not self._is_upgrade_offer():
            super().on_message_complete()

    def _parse(self, data: bytes) -> bytes:
        """Returns what to parse next: after an upgrade offer, the same request without it."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            if self._is_upgrade_offer():
                head = self._head_without_upgrade()
                self.parser = _parser(self)  # the old parser stops reading if the connection is to close
                return head + data[offer.args[0] :]
        return b""

    def _is_upgrade_offer(self) -> bool:
        """The parser then takes the head for the whole request. It does so after CONNECT too, which is not an offer."""
        return bool(self.parser.should_upgrade()) and self.parser.get_method() != b"CONNECT"

    def _head_without_upgrade(self) -> bytes:
        line = b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        fields = [b"%b: %b" % field for field in self.headers if field[0] != b"upgrade"]
        return b"\r\n".join((line, *fields, b"", b""))

    def _refuse(self, status: HTTPStatus, detail: str) -> None:
        self.transport.write(refusal(status, detail, self.app_state["worker"].worker))
        self.transport.close()


class RepeatedRequest(Protocol):
    """A request that is answered again."""


class RepeatedResponse(Protocol):
    """Its response, with status 200."""

    @property
    def headers(self) -> list[tuple[bytes, bytes]]: ...

    @property
    def body(self) -> bytes: ...


class RepeatedRequests(Protocol):
    """Answers requests by their bytes. `state` is what the application's lifespan has opened."""

    def begin(self, whole: bytes, state: dict[str, Any]) -> RepeatedRequest | None: ...

    def near(self, asked: Any) -> RepeatedResponse | None: ...

    async def again(self, asked: Any) -> RepeatedResponse | None: ...

    def ended(self, asked: Any, response: Any) -> None: ...

    def note(self, scope: Any, whole: bytes) -> None: ...


def _parser(protocol: HttpToolsProtocol) -> httptools.HttpRequestParser:
    """Creates a parser like uvicorn does."""
    parser = httptools.HttpRequestParser(protocol)
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser


class TimedProtocol(PlainProtocol):
    """A connection that reports its phase to the guard."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        guard: ConnectionGuard,
        fast: RepeatedRequests | None = None,
        closing: Callable[[], bool] = lambda: False,
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """`fast`: answers repeated requests, if anything may. `closing`: connections close after the next answer."""
        super().__init__(config, server_state, app_state, _loop)
        self._guard = guard
        self._fast = fast
        self._closing = closing
        self._closes = False
        self._repeats = False
        """True while a repeated request waits for Redis."""
        self._held = b""
        """Bytes that arrived meanwhile."""
        self._has_answered = False
        self._incoming: Phase | None = None
        """The part of a request that is incomplete: `HEAD`, `BODY` or none."""
        self._quiet_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._quiet_since = self.loop.time()
        if not self._guard.admit(self, self._quiet_since):
            self.refuse(HTTPStatus.SERVICE_UNAVAILABLE, "This worker has reached its connection limit.")

    def connection_lost(self, exc: Exception | None) -> None:
        self._guard.forget(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._quiet_since = self.loop.time()
        if self._repeats:
            self._held += data
            if len(self._held) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
            return
        fast = self._fast if self._is_between_requests() else None
        asked = fast.begin(data, self.app_state) if fast is not None else None
        if fast is None or asked is None:
            self._read(data, fast)
        elif (response := fast.near(asked)) is not None:
            self._guard.move(self, Phase.ANSWERING, self._quiet_since)
            self._send(response)
            fast.ended(asked, response)
            self._report_phase()
        else:
            self._repeats = True
            task = self.loop.create_task(self._ask_again(fast, asked, data))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
            self._report_phase()

    def _read(self, data: bytes, fast: RepeatedRequests | None) -> None:
        """Parses what arrived. `fast` learns a request that arrived at once and alone."""
        before = self.cycle
        super().data_received(data)
        cycle = self.cycle
        is_one = cycle is not before and self._incoming is None and not self.pipeline
        if fast is not None and is_one and cycle.keep_alive and not cycle.more_body:
            fast.note(cycle.scope, data)
        self._report_phase()

    async def _ask_again(self, fast: RepeatedRequests, asked: RepeatedRequest, data: bytes) -> None:
        try:
            response = await fast.again(asked)
        finally:
            self._repeats = False
        if self.parser is None or self.transport.is_closing():
            return
        held, self._held = self._held, b""
        self.flow.resume_reading()
        if response is None:
            self._read(data, None)
        else:
            self._send(response)
            fast.ended(asked, response)
            self._report_phase()
        if held and not self.transport.is_closing():
            self.data_received(held)

    def _send(self, response: RepeatedResponse) -> None:
        self._has_answered = True
        self.server_state.total_requests += 1
        parts = [STATUS_LINE[HTTPStatus.OK]]
        for name, value in (*self.server_state.default_headers, *response.headers):
            parts += name, b": ", value, b"\r\n"
        closes = self._closes or self._closing()
        parts += b"connection: close\r\n\r\n" if closes else b"\r\n", response.body
        self.transport.write(b"".join(parts))
        if closes:
            self.transport.close()

    def _is_between_requests(self) -> bool:
        """Returns whether the next byte begins a request, and its answer may be written at once."""
        return not (
            self._incoming is not None
            or self._is_busy()
            or self.pipeline
            or self._unfinished
            or self.flow.write_paused
            or self.transport.is_closing()
            or self.parser.should_upgrade()
        )

    def shutdown(self) -> None:
        """Lets a repeated request be answered first."""
        self._closes = True
        if not self._repeats:
            super().shutdown()

    def on_message_begin(self) -> None:
        self._incoming = Phase.HEAD
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._incoming = Phase.BODY
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._incoming = None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._quiet_since = self.loop.time()
        super().on_response_complete()
        self._report_phase()

    def timeout_keep_alive_handler(self) -> None:
        """Does nothing: uvicorn's timer misses a client that sends only a line end. The guard does not."""

    def is_quiet(self, seconds: float) -> bool:
        """Returns whether no request is in progress and nothing has arrived for `seconds`."""
        return not self._is_busy() and self.loop.time() - self._quiet_since >= seconds

    def refuse(self, status: HTTPStatus, detail: str) -> None:
        """Closes the connection with an error response, if no response has begun."""
        if self._is_busy() and not self._repeats and self.cycle.response_started:
            self.transport.abort()
        else:
            self._refuse(status, detail)

    def unsent(self) -> int:
        """Returns the bytes of responses that the client has not read."""
        return self.transport.get_write_buffer_size()

    def _is_busy(self) -> bool:
        return self._repeats or (self.cycle is not None and not self.cycle.response_complete)

    def _report_phase(self) -> None:
        self._guard.move(self, self._phase(), self.loop.time())

    def _phase(self) -> Phase:
        if self._repeats:
            return Phase.ANSWERING
        if self._is_busy():
            return Phase.BODY if self._incoming is Phase.BODY and not self.cycle.response_started else Phase.ANSWERING
        if self.transport.is_closing():
            return Phase.UNREAD
        if self._incoming is not None:
            return Phase.HEAD if self._incoming is Phase.HEAD else Phase.REST
        if self.cycle is None and not self._has_answered:
            return Phase.SILENT
        return Phase.UNREAD if self.unsent() else Phase.IDLE


class PortTaken(Exception):
    """Cannot listen on a port. The message is one line that names the variable."""


def listen(variable: str, host: str, port: int) -> socket.socket:
    """Returns a listening socket on `host`:`port`. Raises `PortTaken`."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise PortTaken(f"HOST: cannot listen on {host!r}: {error.strerror}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise PortTaken(_reason(variable, host, port, error)) from None
    return listener


def require_free_port(variable: str, host: str, port: int) -> None:
    """Raises `PortTaken` unless `host`:`port` is free."""
    listen(variable, host, port).close()


def listening_host(listener: Any) -> str | None:
    """Returns the address of a gunicorn listener, or None for a Unix socket, which only this machine can reach."""
    name = listener.sock.getsockname()
    return str(name[0]) if isinstance(name, tuple) else None


def bind_address(host: str, port: int) -> str:
    """Formats an address for gunicorn: IPv6 addresses get brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _reason(variable: str, host: str, port: int, error: OSError) -> str:
    where = bind_address(host, port)
    if error.errno == errno.EADDRINUSE:
        return f"{variable}: {where} is in use; stop the process that listens there, or set {variable} to a free port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"HOST: this machine has no address {host!r}"
    return f"{variable}: cannot listen on {where}: {error.strerror}"
