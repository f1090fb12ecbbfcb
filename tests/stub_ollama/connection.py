"""One connection of the stub. It writes raw bytes, so it can break at any of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.parser import BytesParser
from email.policy import HTTP
from http import HTTPStatus
from typing import Any, cast

from tests.stub_ollama.answers import encoded


@dataclass(frozen=True, slots=True)
class StubRequest:
    """A request. `body` is its JSON, or {} without a body. `traceparent`: the W3C header."""

    method: str
    path: str
    body: dict[str, Any]
    traceparent: str = ""


def form_fields(body: bytes, content_type: str) -> dict[str, Any]:
    """Returns the fields of a form. A file is its size."""
    message = BytesParser(policy=HTTP).parsebytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body)
    fields: dict[str, Any] = {}
    for part in message.iter_parts():
        content = cast(bytes, part.get_payload(decode=True))
        name = str(part.get_param("name", header="content-disposition"))
        fields[name] = len(content) if part.get_filename() else content.decode()
    return fields


Handler = Callable[[StubRequest, "Connection"], Awaitable[None]]


class Connection(asyncio.Protocol):
    """An HTTP/1.1 connection with keep-alive, without pipelining. A disconnect of the client cancels the request's
    handler.
    """

    def __init__(self, handler: Handler, open_connections: set[Connection]) -> None:
        self._handler = handler
        self._open = open_connections
        self._received = b""
        self._task: asyncio.Task[None] | None = None
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._open.discard(self)
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    async def drained(self) -> None:
        """Waits until the client reads what was written."""
        await self._may_write.wait()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, rest = self._received.partition(b"\r\n\r\n")
        if not separator:
            return
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", "0"))
        if len(rest) < length:
            return
        self._received = rest[length:]
        method, path, _ = first.split(" ")
        is_form = headers.get("content-type", "").startswith("multipart/form-data")
        body = form_fields(rest[:length], headers["content-type"]) if is_form else json.loads(rest[:length] or b"{}")
        request = StubRequest(method, path.partition("?")[0], body, headers.get("traceparent", ""))
        self._task = asyncio.get_running_loop().create_task(self._handle(request))

    async def _handle(self, request: StubRequest) -> None:
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await self._handler(request, self)
        except (AttributeError, KeyError, TypeError, ValueError) as error:  # not of its API
            self.answer({"error": f"invalid request: {error!r}"}, 400)

    def answer(self, answer: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Sends a complete answer with its length."""
        body = encoded(answer)
        self._head(status, {"Content-Length": str(len(body)), **(headers or {})}, "application/json")
        self._transport.write(body)

    def text(self, text: str, status: int = 200) -> None:
        """Sends a complete answer in plain text."""
        body = text.encode()
        self._head(status, {"Content-Length": str(len(body))}, "text/plain")
        self._transport.write(body)

    def begin_stream(self, kind: str = "application/x-ndjson") -> None:
        """Sends the head of a chunked answer."""
        self._head(200, {"Transfer-Encoding": "chunked"}, kind)

    def event(self, event: bytes) -> None:
        """Sends one event as one chunk."""
        self._transport.write(b"%x\r\n%s\r\n" % (len(event), event))

    def line(self, text: bytes) -> None:
        """Sends one line as one chunk."""
        self._transport.write(b"%x\r\n%s\n\r\n" % (len(text) + 1, text))

    def end_stream(self) -> None:
        """Sends the last chunk."""
        self._transport.write(b"0\r\n\r\n")

    def close(self) -> None:
        """Closes after sending the buffered data."""
        self._transport.close()

    def abort(self) -> None:
        """Breaks the connection immediately."""
        self._transport.abort()

    def _head(self, status: int, headers: dict[str, str], kind: str) -> None:
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", f"Content-Type: {kind}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self._transport.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
