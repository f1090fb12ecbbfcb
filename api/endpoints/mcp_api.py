"""POST /mcp: the Model Context Protocol for agents, by the stateless transport over HTTP. docs/mcp.md describes it.

A request passes the same middleware and key check as every other. `mcp_server` then speaks the protocol,
with the package `mcp`. The first request loads it, because it takes a second and 25 MiB.

A page in a browser may send requests too, by DNS rebinding even to a service on the user's machine. The protocol
requires servers to check `Origin`. `RequestHead` has checked `Host` against ALLOWED_HOSTS, so the package's own check,
which knows no wildcards, is off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from importlib import import_module
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from api.cancellation import CancelScope
from api.endpoints.health import worker_state
from api.endpoints.middleware import host_check
from api.endpoints.query import Name
from api.endpoints.routes import CheckedRoute, needs
from api.endpoints.validation import body_in_turn, refuse_too_many_values, refused
from api.errors import NotAuthorized, NotInstalled
from api.loopback import is_loopback_host
from api.ports.telemetry import Telemetry

PATH: Final = "/mcp"
SERVER: Final = "api.endpoints.mcp_server"
JSON: Final = "application/json"

Serve = Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]
"""Answers one message of the protocol."""

router = APIRouter(route_class=CheckedRoute, tags=["MCP"])


class CallerIn(BaseModel):
    """Query parameters. An admin's client, or one without a key, names its tenant in the URL."""

    model_config = ConfigDict(extra="forbid")

    tenant: Name | None = None


@router.post(PATH, include_in_schema=False, response_model=None)
@needs("user")
async def post_mcp(request: Request, caller: Annotated[CallerIn, Query()]) -> Response:
    """Answer one JSON-RPC message. OpenAPI cannot describe them, so the route is not in the schema."""
    state = worker_state(request)
    state.mcp.check_origin(request.headers.get("origin"))
    state.access.tenant(request, caller.tenant)
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
        raise refused("", f"Send a JSON-RPC message, with Content-Type: {JSON}.")
    serve = await state.mcp.loaded()
    body = await body_in_turn(request)
    refuse_large_message(body)
    return McpResponse(serve, body, state.streaming.stall)


MAX_CONTAINERS: Final = 1_000
MAX_COMMAS: Final = 25_000
"""The longest question and the most tags have 18,000. The package takes 4 microseconds for each value."""


def refuse_large_message(body: bytes) -> None:
    """Raises `InvalidRequest` for a message with more values than any valid one, which would keep others waiting."""
    refuse_too_many_values(body, MAX_CONTAINERS)
    if body.count(b",") > MAX_COMMAS:
        raise refused("", f"The message has more than {MAX_COMMAS} commas.")


class McpServer:
    """One worker's MCP server, which the first request loads."""

    def __init__(self, telemetry: Telemetry, version: str, hosts: Sequence[str]) -> None:
        """`hosts`: ALLOWED_HOSTS, in lower case."""
        self._telemetry = telemetry
        self._version = version
        self._is_allowed = host_check(hosts) if hosts else is_loopback_host
        self._loading = asyncio.Lock()
        self._serve: Serve | None = None

    def check_origin(self, origin: str | None) -> None:
        """Raises `NotAuthorized` for a web page of a host that is neither this machine nor in ALLOWED_HOSTS."""
        if origin is not None and not self._is_allowed(_host_of(origin)):
            raise NotAuthorized("Web pages of this origin may not use MCP: its host is not in ALLOWED_HOSTS.")

    async def loaded(self) -> Serve:
        """Raises `NotInstalled`."""
        if self._serve is None:
            async with self._loading:
                self._serve = self._serve or await self._load()
        return self._serve

    async def _load(self) -> Serve:
        """Imports in a thread, so that other requests go on."""
        try:
            module = await asyncio.to_thread(import_module, SERVER)
        except ImportError as error:
            raise NotInstalled("MCP", "mcp") from error
        serve: Serve = module.ToolServer(self._telemetry, self._version).serve
        return serve


def _host_of(origin: str) -> str:
    try:
        return urlsplit(origin).hostname or ""
    except ValueError:
        return ""


class McpResponse(Response):
    """Answers the message in `body`. `stall`: seconds that the client may stop reading."""

    def __init__(self, serve: Serve, body: bytes, stall: float) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers()
        self._serve = serve
        self._message = body
        self._stall = stall

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ends early, and with it the tool's work, if the client leaves or does not read.

        The head waits for the first byte of the body, because only then the limits' headers are known.
        """
        head: list[Message] = []
        with CancelScope() as stalled:

            async def send_in_time(message: Message) -> None:
                if message["type"] == "http.response.start":
                    head.append(message)
                    return
                try:
                    async with asyncio.timeout(self._stall):
                        while head:
                            await send(head.pop())
                        await send(message)
                except TimeoutError:
                    stalled.cancel()
                    await asyncio.Event().wait()  # until the scope ends this task

            await self._serve(scope, _after(self._message, receive), send_in_time)


def _after(body: bytes, receive: Receive) -> Receive:
    """Returns a `receive` that begins with the body, which has been read."""
    given: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return given.pop() if given else await receive()

    return replayed
