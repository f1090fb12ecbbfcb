"""Turns errors into responses: RFC 9457 problem documents, or the error form of an imitated API.

Also answers requests that match no route: 405 with the allowed methods, or a redirect without the trailing slash.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote

import orjson
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from api.endpoints import ollama_wire, openai_wire
from api.endpoints.dropin_wire import AnthropicErrors, dropin_status
from api.endpoints.validation import invalid
from api.errors import (
    CLIENT_CLOSED_REQUEST,
    PayloadTooLarge,
    RagherdError,
    RequestTimeout,
    ServiceUnavailable,
    StoreUnavailable,
    TextUndecryptable,
    Undecryptable,
    UpstreamError,
)


class ClientDisconnected(HTTPException):
    """The client is gone. An `HTTPException`, because FastAPI turns other exceptions of a body into a 400."""

    def __init__(self) -> None:
        super().__init__(CLIENT_CLOSED_REQUEST, "The client disconnected before its response.")


METHODS: Final = ("DELETE", "GET", "PATCH", "POST", "PUT")


def methods_of(request: Request) -> tuple[str, ...]:
    """Returns every method that the request's path supports. HEAD works wherever GET does; OPTIONS is not supported."""
    taken = [method for method in METHODS if _is_taken(request, method)]
    return tuple(sorted({*taken, "HEAD"} if "GET" in taken else taken))


def redirect_without_slash(request: Request) -> Response | None:
    """Returns a redirect to the same path without its trailing slash, if a route exists there.

    `Location` has no host, because the caller controls `Host`. A path that begins with two slashes would name another
    host, so it is not redirected.
    """
    path = request.scope["path"].rstrip("/")
    if path == request.scope["path"] or not path or path.startswith("//"):
        return None
    if not _is_taken(request, request.method, path):
        return None
    query = request.scope["query_string"].decode("latin-1")
    location = quote(path, safe="/:@!$&'()*+,;=~") + (f"?{query}" if query else "")
    return Response(status_code=307, headers={"Location": location})


def _is_taken(request: Request, method: str, path: str | None = None) -> bool:
    scope = {**request.scope, "method": method, "path": path or request.scope["path"]}
    return any(route.matches(scope)[0] is Match.FULL for route in request.app.router.routes)


PROBLEM_JSON = "application/problem+json"


def install(app: FastAPI) -> None:
    """Registers the handlers. `RequestContext` renders all other exceptions."""
    app.add_exception_handler(RagherdError, _ragherd_error)
    app.add_exception_handler(StoreUnavailable, _store_unavailable)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnected, _client_disconnected)


def problem(error: RagherdError, *, path: str, request_id: str) -> Response:
    """Returns the response for an error, in the form of the API that the path belongs to.

    Ollama's refusal of a forwarded request is passed on as Ollama worded it.
    """
    if isinstance(error, UpstreamError) and (said := error.verbatim) is not None:
        return Response(said.body, said.status, media_type=said.media_type)
    for wire in (AnthropicErrors, ollama_wire, openai_wire):
        if wire.owns_path(path):
            return Response(
                orjson.dumps(wire.error_body(error)), dropin_status(error), error.headers, "application/json"
            )
    document = problem_document(error, path=path, request_id=request_id)
    return Response(orjson.dumps(document), error.status, error.headers, PROBLEM_JSON)


def problem_document(error: RagherdError, *, path: str, request_id: str) -> dict[str, Any]:
    """The problem document of an error."""
    return {
        "type": error.problem_type,
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "instance": path,
        "request_id": request_id,
        **error.members,
    }


def without_store(error: StoreUnavailable, what: str) -> ServiceUnavailable:
    """The error of a request or a tool that needs Redis."""
    if isinstance(error, Undecryptable):
        return TextUndecryptable(error)
    return ServiceUnavailable(f"Redis is unavailable, and this {what} needs it.", retry_after=1)


def _respond(request: Request, error: RagherdError) -> Response:
    if not isinstance(error, HttpProblem):
        request.state.error = error.slug
    return problem(error, path=request.url.path, request_id=request.state.request_id)


async def _ragherd_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RagherdError)
    return _respond(request, error)


async def _store_unavailable(request: Request, error: Exception) -> Response:
    assert isinstance(error, StoreUnavailable)
    return _respond(request, without_store(error, "request"))


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _respond(request, invalid(error.errors()))


async def _http_error(request: Request, error: Exception) -> Response:
    """Handles Starlette's errors (404, 405) and those of `LimitedReceive`."""
    assert isinstance(error, HTTPException)
    if error.status_code == RequestTimeout.status:
        return _respond(request, RequestTimeout(str(error.detail)))
    if error.status_code == PayloadTooLarge.status:
        return _respond(request, PayloadTooLarge(str(error.detail)))
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return _respond(request, HttpProblem(405, str(error.detail), {"Allow": ", ".join(methods_of(request))}))
    if error.status_code == HTTPStatus.NOT_FOUND and (redirect := redirect_without_slash(request)):
        return redirect
    return _respond(request, HttpProblem(error.status_code, str(error.detail), error.headers))


async def _client_disconnected(_: Request, error: Exception) -> Response:
    """Reaches nobody. The status is for metrics and logs."""
    assert isinstance(error, ClientDisconnected)
    return Response(status_code=error.status_code)


class HttpProblem(RagherdError):
    """An error that means no more than its status code (`about:blank`, RFC 9457, section 4.2.1)."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail, headers=headers)
        self.status = status
        self.title = HTTPStatus(status).phrase

    @property
    def problem_type(self) -> str:
        """No meaning beyond the status."""
        return "about:blank"
