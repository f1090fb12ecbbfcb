"""What httpcore tells about one request while it runs: new connection or reused, and when each stage was reached."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any


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
