"""A client of server-sent events (HTML standard, section 9.2.6) that can disconnect at any time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

Event = tuple[str, Any]


async def events(response: httpx.Response) -> AsyncIterator[Event]:
    """Each event's name and JSON, as they come. Comments are passed over."""
    name = "message"
    data: list[str] = []
    async for line in response.aiter_lines():
        if line.startswith(":"):
            continue
        if line == "" and data:
            yield name, json.loads("\n".join(data))
            name, data = "message", []
        field, _, value = line.partition(":")
        if field == "event":
            name = value.removeprefix(" ")
        elif field == "data":
            data.append(value.removeprefix(" "))


async def streamed(client: httpx.AsyncClient, question: str, **more: Any) -> tuple[httpx.Response, list[Event]]:
    """A question's whole stream; the test fails unless it is one. `headers` are the request's."""
    headers = more.pop("headers", None)
    body = {"question": question, "stream": True, **more}
    async with client.stream("POST", "/query", json=body, headers=headers) as response:
        if response.status_code != 200:
            await response.aread()
        assert response.status_code == 200, response.text
        assert response.headers["Content-Type"] == "text/event-stream"
        return response, [event async for event in events(response)]


def text_of(found: list[Event]) -> str:
    """The answer as the tokens give it."""
    return "".join(data["text"] for name, data in found if name == "token")


@asynccontextmanager
async def connected(client: httpx.AsyncClient, question: str, **more: Any) -> AsyncIterator[asyncio.StreamReader]:
    """A question sent over a connection of its own, whose bytes are read as one likes; leaving the block breaks it.

    The reader takes next to nothing by itself.
    """
    body = json.dumps({"question": question, **more}).encode()
    head = f"POST /query HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port, limit=1024)
    try:
        writer.write(head.encode() + body)
        yield reader
    finally:
        writer.transport.abort()
