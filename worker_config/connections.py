"""What a client is told whose request no application sees: the same form as every other error.

It cannot be read, or it came too late, or there is no room for it. It is answered here, under its own id.

Connections that speak HTTP/1.1 and nothing else, whatever a client offers or forgets to end.

uvicorn drops the body of a request that offers another protocol, as Java's own client does at first (`Upgrade: h2c`);
and it keeps a head that never ends, however long.

Connections that know what they are doing, so that a guard can close those that keep a worker waiting.

A leaving worker closes those that are quiet. uvicorn closes every connection without a request at once. One that was
just accepted, or whose client is about to reuse it, has a request on its way: that request would be lost.

Sockets of the master: taken ports are found before anything starts, and said in one line.
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
    """A whole response, after which the connection is closed: where the next request would begin is not known."""
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


LONGEST_HEAD: Final = 1 << 16
"""Bytes of a head, or of what follows the last chunk, that may have come before its end has."""


class PlainProtocol(HttpToolsProtocol):
    """uvicorn's connection. An offer of another protocol is ignored (RFC 9110, section 7.8)."""

    _unfinished = 0
    """Bytes that came since the last that made sense by themselves."""

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._unfinished += len(data)
        try:
            while data:
                data = self._parse(data)
        except httptools.HttpParserError:
            self._refuse(HTTPStatus.BAD_REQUEST, "This is no HTTP request.")
        else:
            if self._unfinished > LONGEST_HEAD:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "The head of the request has no end.")

    def on_headers_complete(self) -> None:
        self._unfinished = 0
        if not self._is_offered_another():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unfinished = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unfinished = 0
        if not self._is_offered_another():
            super().on_message_complete()

    def _parse(self, data: bytes) -> bytes:
        """What is to be parsed next: after an offer, the same request without it."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            if self._is_offered_another():
                head = self._head_without_the_offer()
                self.parser = _parser(self)  # the other one reads no more of a connection that is to close after this
                return head + data[offer.args[0] :]
        return b""

    def _is_offered_another(self) -> bool:
        """The parser then takes the head for the whole request. It does so after a CONNECT too, which is no offer."""
        return bool(self.parser.should_upgrade()) and self.parser.get_method() != b"CONNECT"

    def _head_without_the_offer(self) -> bytes:
        line = b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        fields = [b"%b: %b" % field for field in self.headers if field[0] != b"upgrade"]
        return b"\r\n".join((line, *fields, b"", b""))

    def _refuse(self, status: HTTPStatus, detail: str) -> None:
        self.transport.write(refusal(status, detail, self.app_state["worker"].worker))
        self.transport.close()


def _parser(protocol: HttpToolsProtocol) -> httptools.HttpRequestParser:
    """As uvicorn makes it."""
    parser = httptools.HttpRequestParser(protocol)
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser


class TimedProtocol(PlainProtocol):
    """A connection that tells its guard what it is doing."""

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
        """The part of a request that has begun and not ended: `HEAD`, `BODY` or none."""
        self._quiet_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._quiet_since = self.loop.time()
        if not self._guard.admit(self, self._quiet_since):
            self.turn_away(HTTPStatus.SERVICE_UNAVAILABLE, "As many requests as this worker takes are under way.")

    def connection_lost(self, exc: Exception | None) -> None:
        self._guard.forget(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._quiet_since = self.loop.time()
        super().data_received(data)
        self._tell()

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
        self._tell()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing: uvicorn's timer forgets a client that sends a line end and no more. The guard does not."""

    def is_quiet(self, seconds: float) -> bool:
        """Whether no request is under way and for so long nothing came."""
        return not self._is_busy() and self.loop.time() - self._quiet_since >= seconds

    def turn_away(self, status: HTTPStatus, detail: str) -> None:
        """Closes it with an answer, where none has begun."""
        if self._is_busy() and self.cycle.response_started:
            self.transport.abort()
        else:
            self._refuse(status, detail)

    def unsent(self) -> int:
        """Bytes of responses that the client has not taken."""
        return self.transport.get_write_buffer_size()

    def _is_busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _tell(self) -> None:
        self._guard.is_now(self, self._phase(), self.loop.time())

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
    """Nothing can listen there: one line that names the variable."""


def listen(variable: str, host: str, port: int) -> socket.socket:
    """A listening socket on `host`:`port`. Raises `PortTaken`, one line that names the variable to change."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise PortTaken(f"HOST: can not listen on {host!r}: {error.strerror}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise PortTaken(_why(variable, host, port, error)) from None
    return listener


def require_free_port(variable: str, host: str, port: int) -> None:
    """Raises `PortTaken` unless `host`:`port` can be listened on now."""
    listen(variable, host, port).close()


def listening_host(listener: Any) -> str | None:
    """The address that a listener of gunicorn's is bound to; None for a unix socket, which is this machine's alone."""
    name = listener.sock.getsockname()
    return str(name[0]) if isinstance(name, tuple) else None


def bind_address(host: str, port: int) -> str:
    """As gunicorn takes it: an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _why(variable: str, host: str, port: int, error: OSError) -> str:
    where = bind_address(host, port)
    if error.errno == errno.EADDRINUSE:
        return f"{variable}: {where} is taken; stop what listens there, or set {variable} to a free port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"HOST: this machine has no address {host!r}"
    return f"{variable}: can not listen on {where}: {error.strerror}"
