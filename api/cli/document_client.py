"""The documents of a running service, over HTTP. What passes by itself is tried again: a restart costs nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    retry_if_result,
    stop_after_delay,
    wait_random_exponential,
)

PATIENCE: Final = 120.0
"""Seconds that a service may be away."""


class Refused(Exception):
    """The service does not take a document: one line that says why."""


class Away(Refused):
    """The service takes none, for as long as one may wait for it."""


class _Busy(Exception):
    """It may, later."""


_PASSING: Final = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError, _Busy)
"""What passes by itself; not an address or a key that can not be sent."""


class DocumentClient:
    """Made by `connected`."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        patience: float,
        timeout: float,
        on_wait: Callable[[str], None] = lambda why: None,
    ) -> None:
        self._client = client
        self._patience = patience
        self._timeout = timeout
        self._on_wait = on_wait
        self._told = False

    async def upload(
        self, name: str, content: bytes, fields: Mapping[str, str | list[str]]
    ) -> tuple[str, dict[str, Any]]:
        """What became of it, and the document once it serves. Raises `Refused`."""
        document = await self._request("POST", "/documents", files={"file": (name, content)}, data=dict(fields))
        outcome = str(document.get("outcome"))
        if document["status"] == "processing":
            document = await self._settled(document["id"])
        if document["status"] == "failed":
            raise Refused(str(document["error"]))
        return outcome, document

    async def all_of(self, tenant: str | None, tag: str | None = None) -> list[dict[str, Any]]:
        """Every document of a tenant."""
        found: list[dict[str, Any]] = []
        params = {name: value for name, value in (("tenant", tenant), ("tag", tag)) if value is not None}
        cursor: str | None = ""
        while cursor is not None:
            page = await self._request("GET", "/documents", params={**params, "limit": 500, **_after(cursor)})
            found += page["documents"]
            cursor = page["cursor"]
        return found

    async def has(self, source: str, tenant: str | None) -> bool:
        """Whether a tenant has a document of this source."""
        params = {"source": source, "limit": 1, **({} if tenant is None else {"tenant": tenant})}
        return bool((await self._request("GET", "/documents", params=params))["documents"])

    async def delete(self, document: str) -> None:
        """Raises `Refused`."""
        await self._request("DELETE", f"/documents/{document}")

    async def _settled(self, document: str) -> dict[str, Any]:
        asking = AsyncRetrying(
            retry=retry_if_result(lambda found: found["status"] == "processing"),
            wait=wait_random_exponential(multiplier=0.1, max=2),
            stop=stop_after_delay(self._timeout),
            retry_error_callback=lambda _: {"status": "failed", "error": f"not ready after {self._timeout:g} s"},
        )
        found: dict[str, Any] = await asking(self._request, "GET", f"/documents/{document}", params={"limit": 0})
        return found

    async def _request(self, method: str, path: str, **sent: Any) -> Any:
        trying = AsyncRetrying(
            retry=retry_if_exception_type(_PASSING),
            wait=wait_random_exponential(multiplier=0.2, max=5),
            stop=stop_after_delay(self._patience),
            before_sleep=self._tell,
            reraise=True,
        )
        try:
            return await trying(self._once, method, path, **sent)
        except (httpx.TransportError, _Busy) as error:
            raise Away(f"the service does not answer: {str(error) or type(error).__name__}") from None

    def _tell(self, trial: RetryCallState) -> None:
        """The first time that it is waited for."""
        if not self._told and trial.outcome is not None:
            self._told = True
            self._on_wait(str(trial.outcome.exception()))

    async def _once(self, method: str, path: str, **sent: Any) -> Any:
        response = await self._client.request(method, path, **sent)
        if response.status_code in {429, 502, 503, 504}:
            raise _Busy(_detail(response))
        if method == "DELETE" and response.status_code == 404:
            return None  # gone already
        if not response.is_success:
            raise Refused(_detail(response))
        return response.json() if response.content else None


@asynccontextmanager
async def connected(
    url: str,
    key: str | None,
    *,
    patience: float = PATIENCE,
    timeout: float = 600.0,  # noqa: ASYNC109 - of a document
    on_wait: Callable[[str], None] = lambda why: None,
) -> AsyncIterator[DocumentClient]:
    """A client of the service at `url`. `timeout`: seconds until a document has to serve.

    `on_wait` is told why the service is waited for, once. Raises `Refused` for what is no address.
    """
    headers = {b"Authorization": f"Bearer {key.strip()}".encode()} if key else {}
    async with httpx.AsyncClient(base_url=_address(url), headers=headers, timeout=60.0, trust_env=False) as client:
        yield DocumentClient(client, patience, timeout, on_wait)


def _address(url: str) -> httpx.URL:
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise Refused(f"{url}: {error}") from None
    if (address.port or 0) > 65_535:
        raise Refused(f"{url}: Invalid port: {address.port}")
    return address


def _after(cursor: str) -> dict[str, str]:
    return {"cursor": cursor} if cursor else {}


def _detail(response: httpx.Response) -> str:
    try:
        return f"{response.status_code}: {response.json()['detail']}"
    except (ValueError, KeyError, TypeError):
        return f"{response.status_code}: {response.text[:200]}"
