"""How long each part of a generation may take, and what it means when one takes longer.

What httpcore tells about one request while it runs: new connection or reused, and when each stage was reached.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from api.cancellation import let_go
from api.errors import UpstreamError, UpstreamFault


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds. How long connecting may take is the pool's: `PoolLimits.connect_timeout`."""

    first_token: float = 30.0
    cold_first_token: float = 300.0
    inter_token: float = 15.0
    total: float = 300.0


class Clock:
    """Watches one generation, retries included. The total runs from the making of this object, pauses aside."""

    def __init__(self, deadlines: Deadlines, timeout: float | None = None) -> None:
        """`timeout`: seconds that only ever shorten the total."""
        self._deadlines = deadlines
        self._loop = asyncio.get_running_loop()
        self._total = deadlines.total if timeout is None else min(timeout, deadlines.total)
        self._total_at = self._loop.time() + self._total

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around a `yield`: how long the reader takes says nothing about Ollama."""
        since = self._loop.time()
        yield
        self._total_at += self._loop.time() - since

    @asynccontextmanager
    async def inter_token(self) -> AsyncIterator[None]:
        """Around the wait for one further line. Raises `UpstreamError`."""
        async with self._until(self._loop.time() + self._deadlines.inter_token) as verdict:
            verdict.fault = UpstreamFault.INTER_TOKEN_TIMEOUT
            verdict.detail = f"Ollama sent no further token for {self._deadlines.inter_token:g} s."
            yield

    @asynccontextmanager
    async def first_token(self, resident: Callable[[], Awaitable[bool]]) -> AsyncIterator[None]:
        """Around sending and the wait for the first line. Raises `UpstreamError`.

        Past the warm deadline `resident()` is asked, once: a model that is still being loaded gets the cold one. Where
        the total ends first, a slow load is still what it was, and says nothing against Ollama.
        """
        cold = max(self._deadlines.cold_first_token, self._deadlines.first_token)
        async with self._until(self._loop.time() + cold) as verdict:
            verdict.fault = UpstreamFault.COLD_START_TIMEOUT
            verdict.detail = f"The model was not loaded within {min(cold, self._total):g} s."
            watch = asyncio.create_task(self._watch(verdict, resident))
            let_go(watch)
            try:
                yield
            finally:
                verdict.is_over = True
                watch.cancel()

    async def _watch(self, verdict: _Verdict, resident: Callable[[], Awaitable[bool]]) -> None:
        await asyncio.sleep(self._deadlines.first_token)
        if await resident():
            verdict.fault = UpstreamFault.FIRST_TOKEN_TIMEOUT
            verdict.detail = f"Ollama sent no first token within {self._deadlines.first_token:g} s."
            verdict.now()
        else:
            verdict.outlives_total = True

    @asynccontextmanager
    async def _until(self, moment: float) -> AsyncIterator[_Verdict]:
        timeout = asyncio.timeout_at(min(moment, self._total_at))
        verdict = _Verdict(timeout)
        try:
            async with timeout:
                yield verdict
        except TimeoutError as error:
            if not timeout.expired():
                raise
            if (timeout.when() or 0.0) >= self._total_at and not verdict.outlives_total:
                detail = f"The whole answer took longer than {self._total:g} s."
                raise UpstreamError(UpstreamFault.TOTAL_TIMEOUT, detail) from error
            raise UpstreamError(verdict.fault, verdict.detail) from error


class _Verdict:
    """What it means if the timeout strikes; may change while it runs."""

    def __init__(self, timeout: asyncio.Timeout) -> None:
        self._timeout = timeout
        self.fault = UpstreamFault.TOTAL_TIMEOUT
        self.detail = ""
        self.is_over = False
        """Whether the wait has ended: a late word of Ollama's changes nothing then."""
        self.outlives_total = False
        """Whether it stands where the total strikes first."""

    def now(self) -> None:
        """Lets the timeout strike at once, unless it has or is already over."""
        if not self.is_over and not self._timeout.expired():
            self._timeout.reschedule(asyncio.get_running_loop().time())


class RequestTrace:
    """The callback of httpx's `trace` extension. Times are seconds since the request began; None: not reached."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._connecting_at: float | None = None
        self.wait: float | None = None
        """Until a connection was assigned: the first event of any kind."""
        self.connect: float | None = None
        """The TCP handshake, and TLS if there is any."""
        self.first_byte: float | None = None
        """Until the head of the response was read."""
        self.opened = False
        """The request was given a new connection, which then was established or not."""
        self.sent = False
        """The request began to be written, over a connection new or reused."""

    async def __call__(self, event: str, info: Mapping[str, Any]) -> None:
        """Called by httpcore before and after each stage."""
        now = self.elapsed
        if self.wait is None:
            self.wait = now
        if event == "connection.connect_tcp.started":
            self.opened = True
            self._connecting_at = now
        elif event in {"connection.connect_tcp.complete", "connection.start_tls.complete"}:
            self.connect = now - (self._connecting_at or 0.0)
        elif event == "http11.send_request_headers.started":
            self.sent = True
        elif event == "http11.receive_response_headers.complete":
            self.first_byte = now

    @property
    def elapsed(self) -> float:
        """Seconds since the request began."""
        return time.perf_counter() - self._began

    @property
    def reused(self) -> bool:
        """The request went out over a connection that had served before."""
        return self.sent and not self.opened

    @property
    def went_stale(self) -> bool:
        """For a request whose connection broke: it was a reused one, and not a byte had come."""
        return self.reused and self.first_byte is None
