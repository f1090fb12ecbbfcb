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
    """Yields each event's name and JSON as it arrives. Skips comments."""
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
    """Returns a question's complete stream. Fails the test if the response is not a stream."""
    headers = more.pop("headers", None)
    body = {"question": question, "stream": True, **more}
    async with client.stream("POST", "/query", json=body, headers=headers) as response:
        if response.status_code != 200:
            await response.aread()
        assert response.status_code == 200, response.text
        assert response.headers["Content-Type"] == "text/event-stream"
        return response, [event async for event in events(response)]


def text_of(found: list[Event]) -> str:
    """Returns the answer from its tokens."""
    return "".join(data["text"] for name, data in found if name == "token")


@asynccontextmanager
async def connected(client: httpx.AsyncClient, question: str, **more: Any) -> AsyncIterator[asyncio.StreamReader]:
    """Sends a question over a raw connection that the test reads itself. Leaving the block closes the connection.

    The reader buffers almost nothing.
    """
    body = json.dumps({"question": question, **more}).encode()
    head = f"POST /query HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port, limit=1024)
    try:
        writer.write(head.encode() + body)
        yield reader
    finally:
        writer.transport.abort()
