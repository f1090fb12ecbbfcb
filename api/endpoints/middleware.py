"""ASGI middleware in front of every endpoint, from the outermost to the innermost.

Streams pass through the middleware, and it costs microseconds.

- `HeadRequests`: HEAD wherever there is GET (RFC 9110, section 9.1). Monitors use it to see whether the service is up.
- `TracedRequests`: only if there is a collector of traces.
- `fast_path.FastPath`: answers a request that equals an earlier one.
- `HttpMetrics`: times and logs every request by the template of its route.
- `RequestContext`: every response names its request and its worker, and every log line its request.
- `RequestHead`: `Host` and `Authorization` come once. Two of them are read differently by a proxy and by the server
  behind it: one checks the first, the other acts on the second. HTTP/1.1 needs one `Host` (RFC 9112, section 3.2).
- `BodyLimit`: refuses a body that is too large or too slow, by its declared length or while it arrives. FastAPI's own
  `max_body_size` answers in plain text; here it is a problem document like every other error.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final, NamedTuple, NoReturn, Protocol

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.cancellation import is_own_cancellation
from api.endpoints.ollama_wire import BLOBS
from api.endpoints.problems import ClientDisconnected, problem
from api.errors import (
    CLIENT_CLOSED_REQUEST,
    HostNotAllowed,
    InternalError,
    MalformedHead,
    PayloadTooLarge,
    RagherdError,
)

HEALTH: Final = "/health"
"""Kubernetes probes a pod by its IP address, which cannot be in ALLOWED_HOSTS. These paths skip that check."""
_AUTHORITY: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(:[0-9]*)?")


class RequestHead:
    """Refuses malformed heads with 400. `allowed` has the lower-case names of ALLOWED_HOSTS; an empty list allows any
    host.
    """

    def __init__(self, app: ASGIApp, allowed: Sequence[str]) -> None:
        self._app = app
        self._is_allowed = host_check(allowed) if allowed and "*" not in allowed else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (error := self._fault(scope)):
            response = problem(error, path=scope["path"], request_id=scope["state"]["request_id"])
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _fault(self, scope: Scope) -> RagherdError | None:
        hosts, keys, other_keys = [], 0, 0
        for name, value in scope["headers"]:
            if name == b"host":
                hosts.append(value)
            elif name == b"authorization":
                keys += 1
            elif name == b"x-api-key":
                other_keys += 1
        if len(hosts) > 1:
            return MalformedHead("The request has two Host headers.")
        if keys > 1:
            return MalformedHead("The request has two Authorization headers.")
        if other_keys > 1:
            return MalformedHead("The request has two X-Api-Key headers.")
        if not hosts:
            return MalformedHead("The request has no Host header.") if scope["http_version"] == "1.1" else None
        authority = _AUTHORITY.fullmatch(hosts[0].decode("latin-1"))
        if authority is None:
            return MalformedHead("The Host header is not a valid host name with an optional port.")
        if self._is_allowed is None or self._is_allowed(authority[1].strip("[]").lower()) or _is_health(scope["path"]):
            return None
        return HostNotAllowed("The Host header is not in ALLOWED_HOSTS.")


def host_check(allowed: Sequence[str]) -> Callable[[str], bool]:
    """Returns a predicate for host names without port. `*.name` allows every subdomain, but not `name` itself."""
    if not allowed or "*" in allowed:
        return lambda _: True
    names = frozenset(name for name in allowed if not name.startswith("*."))
    below = tuple(name[1:] for name in allowed if name.startswith("*."))

    def is_allowed(host: str) -> bool:
        name = host.removesuffix(".")  # a client may send a fully qualified name
        return name in names or name.endswith(below)

    return is_allowed


def _is_health(path: str) -> bool:
    return path == HEALTH or path.startswith(f"{HEALTH}/")


HEAD_ONLY: Final = "ragherd.head_only"
"""Key of the scope of a HEAD request: a stream that has no end by itself then ends after its headers."""


class HeadRequests:
    """Runs HEAD requests as GET in a copied scope. The server sees HEAD in the original scope and drops the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Returns the coroutine of what is inside, so no step of it passes through here."""
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET", HEAD_ONLY: True}
        return self._app(scope, receive, send)


REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


def given_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The caller's request id; empty if there is none, or an invalid one."""
    for name, value in headers:
        if name == b"x-request-id":
            text = value.decode("latin-1")
            return text if REQUEST_ID.fullmatch(text) else ""
    return ""


class RequestContext:
    """Sets `X-Request-ID` (the caller's if valid) and `X-Worker`, and answers unhandled errors with 500."""

    def __init__(self, app: ASGIApp, worker: str) -> None:
        self._app = app
        self._worker = worker
        self._log = structlog.get_logger("ragherd")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = given_id(scope["headers"]) or uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def labelled(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                headers["X-Worker"] = self._worker
                if (charge := scope["state"].get("charge")) is not None:
                    headers.raw.extend(charge.headers)
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, labelled)
            except (Exception, asyncio.CancelledError) as error:
                if isinstance(error, asyncio.CancelledError) and is_own_cancellation():
                    raise
                # Unhandled: the client gets a problem document, the log the traceback.
                self._log.exception("unhandled_error", route=route_template(scope))
                if started:
                    raise
                await problem(InternalError(), path=scope["path"], request_id=request_id)(scope, receive, labelled)


MINIMUM_RATE: Final = 240
"""Bytes per second that a client must send on average. A modem of 1995 sent ten times as many."""
GRACE_SECONDS: Final = 0.1
"""After the deadline the event loop gets this time to read what arrived while it was busy."""


class LimitedReceive:
    """Wraps `receive`. Raises `HTTPException` 413 and 408, and `ClientDisconnected`, until the body is complete.

    `limit` is in bytes. Within `timeout` seconds at least `timeout * MINIMUM_RATE` more bytes must arrive. Only the
    time that the application waits counts, so it may read slowly.
    """

    def __init__(self, receive: Receive, limit: int, timeout: float) -> None:
        self._receive = receive
        self._limit = limit
        self._timeout = timeout
        self._received = 0
        self._complete = False
        self._waited = 0.0
        self._progress = 0

    async def __call__(self) -> Message:
        """Returns the next ASGI message. After the body, that is the server's notice that the client disconnected."""
        if self._complete:
            return await self._receive()
        left = self._timeout - self._waited
        if left <= 0:
            self._give_up()
        loop = asyncio.get_running_loop()
        began, message = loop.time(), None
        try:
            for seconds in (left, GRACE_SECONDS):
                if message is None:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(seconds):
                            message = await self._receive()
        finally:
            self._waited += loop.time() - began
        if message is None:
            self._give_up()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        size = len(message.get("body", b""))
        self._received += size
        if self._received > self._limit:
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, too_large(self._limit))
        self._progress += size
        if self._progress >= MINIMUM_RATE * self._timeout:
            self._waited, self._progress = 0.0, 0
        self._complete = not message.get("more_body", False)
        return message

    def _give_up(self) -> NoReturn:
        detail = f"The body arrived too slowly: less than {MINIMUM_RATE} bytes per second for {self._timeout:g} s."
        raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, detail)


def too_large(limit: int) -> str:
    """Returns the error text for the client."""
    return f"The body is larger than {limit} bytes."


MAX_BLOB_BYTES: Final = 2**40
"""Size of an upload to Ollama by an admin. It streams through, so that it takes no memory."""
FORM_BYTES: Final = 64 * 1024
"""Size of a form besides its file."""


class BodyLimit:
    """Limits bodies to `limit` bytes, and forms with a file to the limit of their path in `file_limits`.

    `LimitedReceive` explains `timeout`.
    """

    def __init__(self, app: ASGIApp, limit: int, file_limits: Mapping[str, int], timeout: float) -> None:
        self._app = app
        self._limit = limit
        self._file_limits = file_limits
        self._timeout = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        is_form = headers.get("content-type", "").lower().startswith("multipart/")
        limit = self._file_limits.get(scope["path"], self._limit) if is_form else self._limit
        length = headers.get("content-length", "")
        if scope["path"].startswith(BLOBS):
            limit = MAX_BLOB_BYTES
        if length.isdigit() and int(length) > limit:
            error = PayloadTooLarge(too_large(limit))
            await problem(error, path=scope["path"], request_id=scope["state"]["request_id"])(scope, receive, send)
            return
        await self._app(scope, LimitedReceive(receive, limit, self._timeout), send)


class TracedRequests:
    """Hands each request to the worker's tracing, which the lifespan has opened."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await scope["state"]["tracing"].serve(self._app, scope, receive, send, route_template)
        else:
            await self._app(scope, receive, send)


UNMATCHED: Final = "unmatched"
METHODS: Final = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
"""Others share one label: a client must not be able to make series."""


class EndedRequest(NamedTuple):
    """A request that ended or was abandoned. `sent`: bytes of the response's body."""

    method: str
    route: str
    status: int
    seconds: float
    sent: int


class RequestMetrics(Protocol):
    """Counts requests. `running`: those in flight."""

    running: int

    def request_ended(self, method: str, route: str, status: int, seconds: float) -> None: ...


RequestLog = Callable[[EndedRequest, Mapping[str, Any]], None]
"""Writes the access log. Takes a request and the state that the application left in its scope."""


class HttpMetrics:
    """Around all middleware that takes time: its times include theirs.

    `log` writes the access log; it takes a request and the state that the application left in its scope.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: RequestMetrics,
        log: RequestLog | None = None,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Counts a request; anything else passes."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = CLIENT_CLOSED_REQUEST
        complete = False
        sent = 0

        async def send_and_note(message: Message) -> None:
            nonlocal status, complete, sent
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                complete = not message.get("more_body", False)
                sent += len(message.get("body", b""))
            await send(message)

        mounted_at = scope.get("root_path", "")
        method = scope["method"] if scope["method"] in METHODS else "OTHER"
        started = time.perf_counter()
        self._metrics.running += 1
        try:
            await self._app(scope, receive, send_and_note)
            status = status if complete else CLIENT_CLOSED_REQUEST
        except Exception:  # an outer middleware turns it into a 500, so count it as one
            status = 500 if status == CLIENT_CLOSED_REQUEST else status
            raise
        finally:
            seconds = time.perf_counter() - started
            route = route_template(scope, mounted_at)
            self._metrics.request_ended(method, route, status, seconds)
            if self._log is not None:
                self._log(EndedRequest(method, route, status, seconds, sent), scope.get("state", {}))


def route_template(scope: Scope, mounted_at: str = "") -> str:
    """The route that took the request, known once the application has run: `/documents/{id}`, or `unmatched`.

    `mounted_at` is the `root_path` before: an application mounted under a path changes it.
    """
    path = getattr(scope.get("route"), "path", None)
    if isinstance(path, str):
        return path
    if "endpoint" not in scope:
        return UNMATCHED
    root: str = scope.get("root_path", "")
    if root != mounted_at:
        return f"{root}/{{path}}"
    return UNMATCHED if scope.get("path_params") else str(scope["path"])
