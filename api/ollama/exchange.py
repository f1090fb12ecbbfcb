"""One request to Ollama and its answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

import httpx

from api.cancel_scope import raise_if_cancelled
from api.errors import UpstreamError
from api.faults import UpstreamFault
from api.ollama import failures

ERROR_BODY_LIMIT: Final = 64 * 1024
"""Bytes of an error's body that are read: a proxy may send anything."""


class Exchange:
    """Made by `OllamaPool.exchange`, which also translates what is raised in here."""

    def __init__(self, client: httpx.AsyncClient, request: httpx.Request, path: str, model: str) -> None:
        self._client = client
        self._request = request
        self._path = path
        self._model = model
        self._response: httpx.Response | None = None

    async def open(self) -> None:
        """Sends the request and waits for the head of a good answer. Raises `UpstreamError` for any other.

        A task that has been cancelled sends nothing.
        """
        raise_if_cancelled()
        response = self._response = await self._client.send(self._request, stream=True)
        if not response.is_success:
            body = await _beginning(response)
            raise failures.from_response(
                response.status_code, response.headers, body, path=self._path, model=self._model
            )

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
        """The answer's body as it comes."""
        assert self._response is not None, "open() comes first"
        return self._response.aiter_bytes()

    async def aclose(self) -> None:
        """Ends the exchange. An answer not read to its end costs its connection, which stops Ollama's generation."""
        if self._response is not None:
            await self._response.aclose()


async def _beginning(response: httpx.Response) -> bytes:
    body = bytearray()
    async for part in response.aiter_bytes():
        body += part
        if len(body) >= ERROR_BODY_LIMIT:
            break
    return bytes(body[:ERROR_BODY_LIMIT])
