"""Clients that disconnect in the middle of a body or never finish it: counts, logs and responses."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from api.app import create_app
from api.endpoints.middleware import MINIMUM_RATE
from tests.support.service import Service, make_settings
from tests.support.waiting import wait_until_async

LENGTH, CHUNKED = "Content-Length: 1000", "Transfer-Encoding: chunked"
FORM = "multipart/form-data"
HALF = {
    FORM: '--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\nhalf of a fi',
    "application/json": '{"question": "half of a quest',
}


def _takers() -> list[tuple[str, str]]:
    """Returns every path that accepts a body, with each content type."""
    described = create_app(make_settings("redis://127.0.0.1:1", "http://127.0.0.1:1")).openapi()["paths"]
    return [
        (path, kind)
        for path, operations in described.items()
        for operation in operations.values()
        for kind in operation.get("requestBody", {}).get("content", ())
    ]


@asynccontextmanager
async def half_sent(
    client: httpx.AsyncClient, path: str, kind: str = "application/json", framing: str = LENGTH
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Opens a connection and sends the first half of a body. Leaving the block closes the connection."""
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    media_type = f"{kind}; boundary=b" if kind == FORM else kind
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {media_type}\r\n{framing}\r\n\r\n"
    half = HALF.get(kind, HALF["application/json"])
    try:
        writer.write((head + (f"{len(half):x}\r\n{half}\r\n" if framing == CHUNKED else half)).encode())
        await writer.drain()
        yield reader, writer
    finally:
        writer.close()


async def statuses(client: httpx.AsyncClient, path: str) -> dict[str, float]:
    """Returns the counted responses of a route by status."""
    text = (await client.get("/metrics")).text
    counted = rf'^ragherd_http_request_duration_seconds_count{{method="POST",route="{path}",status="(\d+)"}} (\S+)$'
    return {status: float(count) for status, count in re.findall(counted, text, re.MULTILINE)}


async def in_flight(client: httpx.AsyncClient) -> float:
    """Returns the number of requests besides this one."""
    text = (await client.get("/metrics")).text
    return float(re.findall(r"^ragherd_http_requests_in_flight (\S+)$", text, re.MULTILINE)[0]) - 1


def test_the_paths_that_take_a_body_are_found() -> None:
    assert len({path for path, _ in _takers()}) >= 10
    assert ("/documents", FORM) in _takers()


@pytest.mark.parametrize("framing", [LENGTH, CHUNKED])
@pytest.mark.parametrize(("path", "kind"), _takers())
async def test_a_client_that_leaves_in_mid_body_is_no_fault_of_the_service(
    serve: Service,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    path: str,
    kind: str,
    framing: str,
) -> None:
    client = await serve()

    async def arrived() -> bool:
        return await in_flight(client) == 1

    async def counted() -> bool:
        return await statuses(client, path) == {"499": 1.0}

    with caplog.at_level(logging.INFO):
        async with half_sent(client, path, kind, framing):
            await wait_until_async(arrived)
        await wait_until_async(counted)
    out = capsys.readouterr()
    assert "Traceback" not in caplog.text + out.out + out.err
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(("path", "kind"), [("/query", "application/json"), ("/documents", FORM), ("/api/chat", "")])
async def test_a_body_that_stops_is_408_and_the_connection_is_closed(serve: Service, path: str, kind: str) -> None:
    client = await serve(server={"body_timeout": 0.2})
    async with half_sent(client, path, kind) as (reader, _):
        head, _, body = (await asyncio.wait_for(reader.read(), 5)).decode().partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 408 Request Timeout")
    assert "connection: close" in head.lower()
    said = json.loads(body)
    detail = f"less than {MINIMUM_RATE} bytes per second for 0.2 s"
    if path == "/api/chat":
        assert detail in said["error"]
    else:
        assert (said["type"], said["status"]) == ("urn:ragherd:problem:request-timeout", 408)
        assert detail in said["detail"]
    assert await statuses(client, path) == {"408": 1.0}


async def test_a_body_below_the_minimum_rate_is_given_up_though_bytes_keep_coming(serve: Service) -> None:
    client = await serve(server={"body_timeout": 0.5})
    async with half_sent(client, "/query") as (reader, writer):
        answer, sent = asyncio.ensure_future(reader.read()), 0
        while not answer.done() and sent < 100:
            writer.write(b"a")
            sent += 1
            await asyncio.wait({answer}, timeout=0.05)
        assert (await answer).startswith(b"HTTP/1.1 408")
    assert sent < 100


async def test_a_slow_body_above_the_minimum_rate_is_answered_however_long_it_takes(serve: Service) -> None:
    timeout = 0.5
    client = await serve(server={"body_timeout": timeout})
    body = json.dumps({"question": "Why?", "tenant": "t"}).encode().ljust(2000)
    framing = f"Content-Length: {len(body)}"
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    writer.write(
        f"POST /query HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{framing}\r\n\r\n".encode()
    )
    loop = asyncio.get_running_loop()
    began, answer = loop.time(), asyncio.ensure_future(reader.readline())
    step = int(MINIMUM_RATE * timeout)
    for at in range(0, len(body), step):
        writer.write(body[at : at + step])
        await asyncio.wait({answer}, timeout=timeout / 4)
    assert await asyncio.wait_for(answer, 10) == b"HTTP/1.1 200 OK\r\n"
    assert loop.time() - began > 3 * timeout
    writer.close()
