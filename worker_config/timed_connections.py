"""Connections that know what they are doing, so that a guard can close those that keep a worker waiting.

A leaving worker closes those that are quiet. uvicorn closes every connection without a request at once. One that was
just accepted, or whose client is about to reuse it, has a request on its way: that request would be lost.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

from uvicorn.config import Config
from uvicorn.server import ServerState

from worker_config.connection_guard import ConnectionGuard
from worker_config.connection_table import Phase
from worker_config.plain_connections import PlainProtocol


class TimedProtocol(PlainProtocol):
    """A connection that tells its guard what it is doing."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        guard: ConnectionGuard,
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._guard = guard
        self._incoming: Phase | None = None
        """The part of a request that has begun and not ended: `HEAD`, `BODY` or none."""
        self._quiet_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._quiet_since = self.loop.time()
        if not self._guard.admit(self, self._quiet_since):
            self.turn_away(HTTPStatus.SERVICE_UNAVAILABLE, "As many requests as this worker takes are under way.")

    def connection_lost(self, exc: Exception | None) -> None:
        self._guard.forget(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._quiet_since = self.loop.time()
        super().data_received(data)
        self._tell()

    def on_message_begin(self) -> None:
        self._incoming = Phase.HEAD
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._incoming = Phase.BODY
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._incoming = None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._quiet_since = self.loop.time()
        super().on_response_complete()
        self._tell()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing: uvicorn's timer forgets a client that sends a line end and no more. The guard does not."""

    def is_quiet(self, seconds: float) -> bool:
        """Whether no request is under way and for so long nothing came."""
        return not self._is_busy() and self.loop.time() - self._quiet_since >= seconds

    def turn_away(self, status: HTTPStatus, detail: str) -> None:
        """Closes it with an answer, where none has begun."""
        if self._is_busy() and self.cycle.response_started:
            self.transport.abort()
        else:
            self._refuse(status, detail)

    def unsent(self) -> int:
        """Bytes of responses that the client has not taken."""
        return self.transport.get_write_buffer_size()

    def _is_busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _tell(self) -> None:
        self._guard.is_now(self, self._phase(), self.loop.time())

    def _phase(self) -> Phase:
        if self._is_busy():
            return Phase.BODY if self._incoming is Phase.BODY and not self.cycle.response_started else Phase.ANSWERING
        if self.transport.is_closing():
            return Phase.UNREAD
        if self._incoming is not None:
            return Phase.HEAD if self._incoming is Phase.HEAD else Phase.REST
        if self.cycle is None:
            return Phase.SILENT
        return Phase.UNREAD if self.unsent() else Phase.IDLE
