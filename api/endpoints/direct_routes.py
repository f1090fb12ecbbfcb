"""Calls most endpoints without FastAPI's router, whose layers take longer than all of our own middleware.

FastAPI resolves dependencies, validates bodies, renders results, and closes what dependencies have opened. Endpoints
that take only the request, or the request and a body, and return a response themselves need none of this.
`DirectRoutes` stands in front of FastAPI's router. It handles errors as FastAPI does, by the same handlers. An invalid
body goes on to FastAPI, which words the error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, get_type_hints

from fastapi import Request, Response
from pydantic import BaseModel
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.endpoints.middleware import CheckedRoute, Handler

JSON: Final = "application/json"


class InvalidBody(Exception):
    """The body is for FastAPI to refuse."""

    def __init__(self, body: bytes) -> None:
        super().__init__("invalid body")
        self.body = body


def direct_handler(endpoint: Callable[..., Any]) -> Handler | None:
    """Returns what calls an endpoint directly. None if FastAPI must call it."""
    hints = get_type_hints(endpoint)
    if hints.pop("return", None) is not Response or hints.pop("request", None) is not Request:
        return None
    model = hints.pop("body", None)
    if hints or not (model is None or (isinstance(model, type) and issubclass(model, BaseModel))):
        return None
    return endpoint if model is None else _with_body(endpoint, model)


def _with_body(endpoint: Callable[..., Any], model: type[BaseModel]) -> Handler:
    async def validated(request: Request) -> Response:
        if request.headers.get("content-type") != JSON:
            raise InvalidBody(await request.body())
        try:
            body = model.model_validate(await request.json())
        except ValueError:
            raise InvalidBody(await request.body()) from None
        response: Response = await endpoint(body, request)
        return response

    return validated


class DirectRoutes:
    """The innermost middleware. `handlers` are the application's, by class of error."""

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute], handlers: Mapping[Any, Callable[..., Any]]) -> None:
        self._app = app
        self._handlers = handlers
        self._routes: dict[tuple[str, str], tuple[CheckedRoute, Handler]] = {}
        for route in routes:
            if not isinstance(route, CheckedRoute) or route.dependencies or "{" in route.path:
                continue
            if (handler := direct_handler(route.endpoint)) is not None:
                called = route, route.checked(handler)
                self._routes |= {(method, route.path): called for method in route.methods or ()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Calls the endpoint, or FastAPI."""
        found = None
        if scope["type"] == "http" and not scope.get("root_path"):
            found = self._routes.get((scope["method"], scope["path"]))
        if found is None:
            await self._app(scope, receive, send)
            return
        route, handler = found
        scope["route"], scope["endpoint"], scope["path_params"] = route, route.endpoint, {}
        request = Request(scope, receive, send)
        has_started = False

        async def sent(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            response = await handler(request)
            await response(scope, receive, send if type(response) is Response else sent)
        except InvalidBody as invalid:
            await self._app(scope, _again(invalid.body, receive), send)
        except Exception as error:  # handled as FastAPI does, by its class; any other is raised again
            handle = next((self._handlers[kind] for kind in type(error).__mro__ if kind in self._handlers), None)
            if handle is None or has_started:
                raise
            await (await handle(request, error))(scope, receive, send)
            error.__traceback__ = None  # a flight raises one error for all its callers, and each would lengthen it


def _again(body: bytes, receive: Receive) -> Receive:
    """Returns a `receive` that returns the body first."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return messages.pop() if messages else await receive()

    return replayed
