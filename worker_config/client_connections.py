"""HTTP/1.1 connections that report their phase to the guard, and the sockets of the master.

`PlainProtocol` corrects two behaviors of uvicorn: it drops the body of a request that offers another protocol, as
Java's client does at first (`Upgrade: h2c`), and it buffers an endless head without limit.

`TimedProtocol` reports its phase, so that the guard can close connections that keep a worker waiting, and a draining
worker can close quiet ones. uvicorn would close every connection without a request at once. A request may be in transit
on a connection that was just accepted or is about to be reused, and would be lost.

`refusal` answers requests that reach no application, in the same form as every other error.

`listen` finds ports that are in use before anything starts, and reports them in one line.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import uuid
from http import HTTPStatus
from typing import Any, Final

import httptools
import orjson
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
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


class PlainProtocol(HttpToolsProtocol):
    """uvicorn's connection, but offers of another protocol are ignored (RFC 9110, section 7.8)."""

    _unfinished = 0
    """Bytes received since the last complete element."""

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

    def on_headers_complete(self) -> None:
        self._unfinished = 0
        if not self._is_upgrade_offer():
            super().on_headers_complete()

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
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._guard = guard
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
        super().data_received(data)
        self._report_phase()

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
        if self._is_busy() and self.cycle.response_started:
            self.transport.abort()
        else:
            self._refuse(status, detail)

    def unsent(self) -> int:
        """Returns the bytes of responses that the client has not read."""
        return self.transport.get_write_buffer_size()

    def _is_busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _report_phase(self) -> None:
        self._guard.move(self, self._phase(), self.loop.time())

    def _phase(self) -> Phase:
        if self._is_busy():
            return Phase.BODY if self._incoming is Phase.BODY and not self.cycle.response_started else Phase.ANSWERING
        if self.transport.is_closing():
            return Phase.UNREAD
        if self._incoming is not None:
            return Phase.HEAD if self._incoming is Phase.HEAD else Phase.REST
        if self.cycle is None:
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
