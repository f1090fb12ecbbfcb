"""Responses of a worker's connections to unusual bytes, with an application that echoes method, path and body."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from worker_config.client_connections import MAX_HEAD_BYTES, OneWrite, PlainProtocol

OFFER = "POST /query HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\n"
LAST = "GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


async def echo(scope: Any, receive: Any, send: Any) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    names = [name.decode() for name, _ in scope["headers"] if name.startswith(b"x-")]
    said = f"{scope['method']} {scope['path']} {' '.join([body.decode(), *names])};".encode()
    headers = [(b"content-length", str(len(said)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": said})


async def answered(*parts: str) -> str:
    """Returns everything received until the connection closes."""
    config = Config(echo, log_config=None)
    state, worker = ServerState(), {"worker": SimpleNamespace(worker="w-1")}
    server = await asyncio.get_running_loop().create_server(
        lambda: PlainProtocol(config, state, worker), "127.0.0.1", 0
    )
    async with server, asyncio.timeout(5):
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        for part in parts:
            writer.write(part.encode())
            await writer.drain()
            await asyncio.sleep(0.01)  # so that each part is a separate read
        came = await reader.read()
        writer.close()
        return came.decode()


@pytest.mark.parametrize(
    "parts", [(OFFER + "hello" + LAST,), (OFFER, "hello", LAST), (OFFER[:40], OFFER[40:] + "he", "llo" + LAST)]
)
async def test_an_upgrade_offer_does_not_lose_the_body(parts: tuple[str, ...]) -> None:
    came = await answered(*parts)
    assert came.count("200 OK") == 2
    assert came.index("POST /query hello;") < came.index("GET /last ;")


@pytest.mark.parametrize(("version", "offering"), [("1.0", "upgrade"), ("1.1", "close, upgrade")])
async def test_an_upgrade_offer_with_connection_close_is_answered(version: str, offering: str) -> None:
    head = f"POST /query HTTP/{version}\r\nConnection: {offering}\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\n"
    for parts in ((head + "hello",), (head, "hello")):
        came = await answered(*parts)
        assert "connection: close" in came
        assert came.endswith("POST /query hello;")


async def test_a_websocket_request_is_an_ordinary_request() -> None:
    asked = "GET /query HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    assert "GET /query ;" in await answered(asked + LAST)


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        (("HELLO\r\n\r\n",), "400 Bad Request"),
        (("BREW /query HTTP/1.1\r\nHost: x\r\n\r\n",), "400 Bad Request"),
        (("CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",), "400 Bad Request"),
        (("GET / HTTP/1.1\r\nX-A: ", "a" * MAX_HEAD_BYTES), "431 Request Header Fields Too Large"),
        (("GET / HTTP/1.1\r\n", "X-A: a\r\n" * (MAX_HEAD_BYTES // 8)), "431 Request Header Fields Too Large"),
    ],
)
async def test_malformed_requests_get_a_problem_document(parts: tuple[str, ...], status: str) -> None:
    head, _, body = (await answered(*parts)).partition("\r\n\r\n")
    first, *lines = head.split("\r\n")
    headers, problem = dict(line.split(": ") for line in lines), json.loads(body)
    assert (first, problem["status"]) == (f"HTTP/1.1 {status}", int(status[:3]))
    assert headers["content-type"] == "application/problem+json"
    assert (headers["x-request-id"], headers["x-worker"]) == (problem["request_id"], "w-1")


@pytest.mark.parametrize("cut", [0, 12, 20])
async def test_fields_behind_the_body_are_not_part_of_the_head(cut: int) -> None:
    head = "POST /query HTTP/1.1\r\nHost: x\r\nX-Before: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
    rest = "5\r\nhello\r\n0\r\nX-Api-Key: a-key\r\n\r\n"
    parts = (head, rest[:cut], rest[cut:]) if cut else (head + rest,)
    came = await answered(*parts, LAST.replace("Host", "X-Next: 1\r\nHost"))
    assert "POST /query hello x-before;" in came
    assert came.endswith("GET /last  x-next;")


async def test_a_body_may_be_longer_than_a_head() -> None:
    long = "b" * (2 * MAX_HEAD_BYTES)
    head = f"POST /long HTTP/1.1\r\nHost: x\r\nContent-Length: {len(long)}\r\n\r\n"
    assert f"POST /long {long};" in await answered(
        head, *(long[at : at + 4096] for at in range(0, len(long), 4096)), LAST
    )


class Writes:
    """A transport that keeps what is written to it."""

    def __init__(self) -> None:
        self.written: list[bytes | str] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def close(self) -> None:
        self.written.append("closed")


async def test_the_head_of_a_response_is_written_with_its_body() -> None:
    transport = Writes()
    one = OneWrite(transport, asyncio.get_running_loop())  # type: ignore[arg-type]
    one.write(b"head ")
    one.write(b"body ")
    one.write(b"more")
    assert transport.written == [b"head body ", b"more"]


async def test_a_head_without_a_body_is_written_in_the_same_round() -> None:
    transport = Writes()
    OneWrite(transport, asyncio.get_running_loop()).write(b"head")  # type: ignore[arg-type]
    await asyncio.sleep(0)
    assert transport.written == [b"head"]


async def test_closing_writes_the_head_first() -> None:
    transport = Writes()
    one = OneWrite(transport, asyncio.get_running_loop())  # type: ignore[arg-type]
    one.write(b"head")
    one.close()
    assert transport.written == [b"head", "closed"]
