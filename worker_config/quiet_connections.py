"""Connections that know for how long nothing has come or gone: a leaving worker closes those that are quiet.

uvicorn closes every connection without a request at once. One that was just accepted, or whose client is about to
reuse it, has a request on its way: that request would be lost.
"""

from __future__ import annotations

import asyncio
from typing import Any

from worker_config.plain_connections import PlainProtocol


class QuietProtocol(PlainProtocol):
    """A connection, with the time since which no request is under way."""

    _quiet_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._quiet_since = self.loop.time()

    def data_received(self, data: bytes) -> None:
        self._quiet_since = self.loop.time()
        super().data_received(data)

    def on_response_complete(self) -> None:
        self._quiet_since = self.loop.time()
        super().on_response_complete()

    def is_quiet(self, seconds: float) -> bool:
        """Whether no request is under way and for so long nothing came."""
        busy: Any = self.cycle is not None and not self.cycle.response_complete
        return not busy and self.loop.time() - self._quiet_since >= seconds
