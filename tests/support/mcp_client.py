"""Connects the official client of the Model Context Protocol to a service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx2
from mcp import Client
from mcp.client.client import ConnectMode
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult, TextContent

PROTOCOLS: Final[tuple[ConnectMode, ...]] = ("legacy", "2026-07-28")
"""With the handshake that most clients still have, and without."""
HEADERS: Final = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}


@asynccontextmanager
async def mcp_client(
    url: object, *, key: str = "", mode: ConnectMode = "legacy", headers: Mapping[str, str] | None = None
) -> AsyncIterator[Client]:
    """Yields a client of the service at `url`, which may have a query string."""
    address = httpx2.URL(str(url))
    keyed = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx2.AsyncClient(headers={**keyed, **(headers or {})}, timeout=30) as http:
        endpoint = str(address.copy_with(path=f"{address.path.rstrip('/')}/mcp"))
        async with Client(streamable_http_client(endpoint, http_client=http), mode=mode) as client:
            yield client


def text_of(result: CallToolResult) -> str:
    """Returns the text that a model reads."""
    (content,) = result.content
    assert isinstance(content, TextContent)
    return content.text


def problem_of(result: CallToolResult) -> dict[str, Any]:
    """Returns the problem document of a tool's error."""
    assert result.is_error, result
    assert result.structured_content is None
    assert result.meta is not None
    problem: dict[str, Any] = result.meta["ragherd/problem"]
    return problem


def message(method: str, *, id: object = 1, **params: Any) -> dict[str, Any]:  # noqa: A002 - JSON-RPC's word
    """Returns a request of JSON-RPC."""
    return {"jsonrpc": "2.0", "id": id, "method": method, **({"params": params} if params else {})}
