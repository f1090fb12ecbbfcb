"""`tests.integration.gunicorn_app.asgi:app`. Raw ASGI, so that the tests exercise only the worker class."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from prometheus_client import CollectorRegistry

from api.observability.metrics import Metrics

LARGE = 16 << 20
"""Bytes: more than sockets buffer."""


class App:
    """GET /pid, /count, /slow, /large, /leak (MiB in the query), /stream (seconds in the query) and /health/ready."""

    def __init__(self) -> None:
        self.metrics = Metrics(CollectorRegistry(), "0")
        self.state = SimpleNamespace(metrics=self.metrics)
        self.leaked: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            scope["state"]["worker"] = SimpleNamespace(worker=str(os.getpid()))
            await self._lifespan(receive, send)
            return
        if scope["path"] == "/stream":
            await self._stream(float(scope["query_string"]), send)
            return
        if scope["path"] == "/leak":
            self.leaked.append(b"x" * (int(scope["query_string"]) << 20))
        if scope["path"] == "/large":
            await self._send_large(send)
            return
        status, body = await self._answer(scope["path"])
        headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body.encode()})

    async def _lifespan(self, receive: Any, send: Any) -> None:
        await receive()
        if os.environ.get("TEST_START") == "hangs":
            await asyncio.Event().wait()
        if Path(os.environ.get("TEST_BROKEN", "/nowhere")).exists():
            await send({"type": "lifespan.startup.failed", "message": "told to fail"})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        sys.stderr.write('{"event": "the lifespan ended"}\n')
        await send({"type": "lifespan.shutdown.complete"})

    async def _stream(self, seconds: float, send: Any) -> None:
        """The process id in ten parts, then `end`."""
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        for _ in range(10):
            await send({"type": "http.response.body", "body": f"{os.getpid()} ".encode(), "more_body": True})
            await asyncio.sleep(seconds / 10)
        await send({"type": "http.response.body", "body": b"end"})

    async def _send_large(self, send: Any) -> None:
        """`LARGE` in one piece."""
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % LARGE)]})
        await send({"type": "http.response.body", "body": bytes(LARGE)})

    async def _answer(self, path: str) -> tuple[int, str]:
        if path == "/health/ready":
            return (503, "draining") if self.state.draining else (200, "ready")
        if path == "/count":
            self.metrics.cache_looked_up("miss")
        if path == "/slow":
            await asyncio.sleep(float(os.environ.get("TEST_SLOW", "1")))
        return 200, str(os.getpid())


app = App()
