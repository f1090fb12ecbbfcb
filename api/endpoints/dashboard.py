"""The live page: GET / for browsers, GET /dashboard, and the stream of figures that it shows.

However many pages are open, a worker reads the figures once every `TICK_SECONDS`, and only while a page is open. Each
page gets only the parts that changed since its last event.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import orjson
from fastapi import APIRouter, Request
from fastapi.sse import format_sse_event
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import Receive, Scope, Send

from api.cancellation import log_failure
from api.endpoints.description import ASSET_HEADERS, PAGE_HEADERS, file_of
from api.endpoints.health import AppState, health_report, worker_out, worker_state
from api.endpoints.middleware import HEAD_ONLY
from api.endpoints.problems import ClientDisconnected
from api.endpoints.resilience import backend_reports, breaker_report, bulkhead_report
from api.endpoints.routes import CheckedRoute, needs
from api.endpoints.streaming import CancelOnDisconnect, EventWire, Streaming
from api.errors import NotFound, ServiceUnavailable, StoreUnavailable

FOLDER: Final = Path(__file__).parent / "live_page"
ASSETS: Final = frozenset(
    {
        "admin.js",
        "ask.js",
        "charts.js",
        "client.js",
        "dom.js",
        "icon.svg",
        "page.css",
        "page.js",
        "panels.js",
        "theme.js",
        "uPlot.iife.min.js",
        "uPlot.min.css",
    }
)
TICK_SECONDS: Final = 2.0
MOST_PAGES: Final = 100
"""Open pages per worker."""
ADMIN: Final = "admin:"
"""Prefix of parts that only admins see, in place of the part without it."""

router = APIRouter(route_class=CheckedRoute, include_in_schema=False)


@router.get("/")
@needs("all")
async def root(request: Request) -> Response:
    """Answers Ollama's clients as Ollama does, and redirects browsers to the live page."""
    if "text/html" in request.headers.get("accept", ""):
        return RedirectResponse("/dashboard", 302)
    return PlainTextResponse("Ollama is running")


@router.get("/dashboard")
@needs("operator")
def page() -> Response:
    """The live page."""
    return file_of(FOLDER, "index.html", PAGE_HEADERS)


@router.get("/dashboard/events")
@needs("operator")
async def events(request: Request) -> Response:
    """Server-sent events `figures`: first every part, then those that changed. 503 for more than 100 pages."""
    worker = worker_state(request)
    feed: LiveFeed = request.state.live
    if feed.pages >= MOST_PAGES:
        raise ServiceUnavailable("Too many pages are open on this worker.", retry_after=10)
    return FiguresStream(feed, worker.streaming, admin=worker.access.is_admin(request))


@router.get("/dashboard/{asset}")
@needs("all")
def asset(asset: str) -> Response:
    """A script, style sheet or image. They contain no figures."""
    if asset not in ASSETS:
        raise NotFound("No such asset.")
    return file_of(FOLDER, asset, ASSET_HEADERS if asset.startswith("uPlot") else PAGE_HEADERS)


POOL_FIELDS: Final = ("active", "pool_maxsize", "waiting", "reuse_rate")

Parts = Mapping[str, object]
"""The figures by part of the page. A part under `ADMIN` replaces the other for admins."""


class LiveFeed:
    """Reads the figures for all open pages of a worker. `draining` ends their streams."""

    def __init__(
        self, read: Callable[[], Awaitable[Parts]], draining: Callable[[], bool], tick: float = TICK_SECONDS
    ) -> None:
        self._read = read
        self._draining = draining
        self._tick = tick
        self._parts: dict[str, tuple[int, bytes]] = {}
        self._turn = 0
        self._changed = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self.pages = 0
        """Open pages."""

    @asynccontextmanager
    async def followed(self, *, admin: bool) -> AsyncIterator[AsyncIterator[bytes]]:
        """Opens a page's stream of JSON objects with the parts that changed. It ends when the worker drains."""
        self.pages += 1
        if self._reading is None or self._reading.done():
            self._parts.clear()  # read for a page of earlier
            self._reading = asyncio.create_task(self._keep_reading())
            log_failure(self._reading)
        try:
            yield self._following(admin)
        finally:
            self.pages -= 1
            if not self.pages and self._reading is not None:
                self._reading.cancel()
                self._reading = None

    async def _following(self, admin: bool) -> AsyncIterator[bytes]:
        seen = 0
        while self._reading is not None and not self._reading.done() and not self._draining():
            next_turn = self._changed  # taken first: a page may read slowly, and the turn comes meanwhile
            if changed := self._since(seen, admin):
                seen = self._turn
                yield changed
            await next_turn.wait()

    def _since(self, seen: int, admin: bool) -> bytes:
        """The parts that changed after turn `seen`, as one JSON object; empty if there are none."""
        parts = []
        for name, (turn, document) in self._parts.items():
            shown = name.removeprefix(ADMIN)
            hidden = ADMIN + name in self._parts if admin else name.startswith(ADMIN)
            if turn > seen and not hidden:
                parts.append(b'"%s":%s' % (shown.encode(), document))
        return b"{%s}" % b",".join(parts) if parts else b""

    async def _keep_reading(self) -> None:
        try:
            while self._reading is asyncio.current_task() and not self._draining():
                found = await self._read()
                self._turn += 1
                for name, part in found.items():
                    document = orjson.dumps(part)
                    if self._parts.get(name, (0, b""))[1] != document:
                        self._parts[name] = self._turn, document
                self._tell()
                await asyncio.sleep(self._tick)
        finally:
            self._tell()  # also after a failure: the streams end, and the pages connect again

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class FiguresStream(Response):
    """Sends the figures until the client leaves or the worker drains."""

    def __init__(self, feed: LiveFeed, streaming: Streaming, *, admin: bool) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._feed = feed
        self._streaming = streaming
        self._admin = admin

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends one event per change; none for a HEAD request."""
        if HEAD_ONLY in scope:
            self.body = b""
            await super().__call__(scope, receive, send)
            return
        wire = EventWire(send, self._streaming)
        try:
            with CancelOnDisconnect(receive):
                async with (
                    self._feed.followed(admin=self._admin) as changes,
                    wire.opened(self.status_code, self.raw_headers),
                ):
                    async for changed in changes:
                        await wire.send(format_sse_event(event="figures", data_str=changed.decode()))
        except ClientDisconnected:
            return
        await wire.end()


async def read_figures(state: AppState) -> Parts:
    """Reads every part of the page. A part that needs Redis is missing while it is down."""
    breaker, bulkhead = await breaker_report(state), await bulkhead_report(state, named=False)
    parts: dict[str, object] = {
        "health": (await health_report(state)).model_dump(mode="json", exclude={"worker"}),
        "breaker": breaker,
        "bulkhead": bulkhead,
        "backends": backend_reports(state, breaker, bulkhead, await state.remembered_prompts()),
        f"{ADMIN}bulkhead": await bulkhead_report(state, named=True),
        "pool": _pools(state.pool_report()),
        "price_per_million_tokens": state.price_per_million_tokens,
    }
    quality = state.quality()
    try:
        parts["workers"] = [worker_out(worker) for worker in await state.live_workers()]
        parts["cache"] = {**await state.cache_report(), "policy": quality.policy, "tightened": quality.tightened}
        parts[f"{ADMIN}recent"] = outcomes = await state.recent()
        parts["recent"] = [
            {**outcome, "question": None, "model": None} for outcome in outcomes
        ]  # both are users' texts
    except StoreUnavailable:
        parts["workers"] = None
    return parts


def _pools(report: dict[str, Any]) -> dict[str, object]:
    """What the page shows of each backend's pool."""
    return {
        "backends": {name: {field: pool[field] for field in POOL_FIELDS} for name, pool in report["backends"].items()}
    }
