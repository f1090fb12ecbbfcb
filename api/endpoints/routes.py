"""Routes: who may call an endpoint, and the direct way to it.

Who may call an endpoint is declared where the endpoint is, and checked before a byte of the body is read. So are the
limits of the key, if the worker remembers that they refuse the request.

Most endpoints are called without FastAPI's router, whose layers take longer than all of our own middleware. FastAPI
resolves dependencies, validates bodies, renders results, and closes what dependencies have opened. Endpoints
that take only the request, or the request and a body, and return a response themselves need none of this.
`DirectRoutes` stands in front of FastAPI's router. It handles errors as FastAPI does, by the same handlers. An invalid
body goes on to FastAPI, which words the error.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, Final, TypeVar, get_type_hints

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.endpoints.access import Charged, Role
from api.endpoints.validation import JsonRequest, body_in_turn, refuse_too_many_values
from api.errors import InvalidRequest, without_frames

MAX_PARAMETERS: Final = 64
"""Parameters in a query string. No endpoint has as many, and each unknown one costs a validation error."""
_ROLE: Final = "ragherd_role"
_CHARGED: Final = "ragherd_charged"

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def needs(role: Role, charged: Charged | None = None) -> Callable[[Endpoint], Endpoint]:
    """Declares who may call an endpoint, and what it charges. Place it below the route's decorator."""

    def declared(endpoint: Endpoint) -> Endpoint:
        setattr(endpoint, _ROLE, role)
        setattr(endpoint, _CHARGED, charged)
        return endpoint

    return declared


def role_of(endpoint: Callable[..., Any]) -> Role:
    """Returns the declared role. Raises `TypeError` if an endpoint declares none."""
    role: Role | None = getattr(endpoint, _ROLE, None)
    if role is None:
        raise TypeError(f"{endpoint.__name__}: declare who may call it with @needs(...)")
    return role


class CheckedRoute(APIRoute):
    """Checks the caller's key first. A caller without a key learns nothing about the body, not even that it is
    malformed.
    """

    def get_route_handler(self) -> Handler:
        """Wraps FastAPI's handler with the checks."""
        return self.checked(super().get_route_handler())

    def checked(self, handler: Handler) -> Handler:
        """Wraps a handler with the checks."""
        role = role_of(self.endpoint)
        charged: Charged | None = getattr(self.endpoint, _CHARGED)

        async def checked(request: Request) -> Response:
            if role != "all":
                await request.state.worker.access.admit(request, role)
            if request.scope["query_string"].count(b"&") >= MAX_PARAMETERS:
                raise InvalidRequest(f"The query string has more than {MAX_PARAMETERS} parameters.")
            if charged is not None:
                await _refuse_unread(request, charged)
            return await handler(await self.prepared(request))

        return checked

    async def prepared(self, request: Request) -> Request:
        """Returns the request for FastAPI to read, after the key was checked."""
        return request


async def _refuse_unread(request: Request, charged: Charged) -> None:
    """Raises `RateLimited` if the worker remembers that the limits of the request's key are used up."""
    worker = request.state.worker
    plan = worker.access.known_plan(request, charged)
    charge = worker.limiter.refusals.find(plan) if plan is not None else None
    if charge is None:
        return
    request.state.charge = charge
    if charged == "question":
        await worker.queries.refuse_unread(request.state.tenant, charge)
    await worker.limiter.settle(charge)


class JsonRoute(CheckedRoute):
    """A checked route with a JSON body that FastAPI validates."""

    async def prepared(self, request: Request) -> Request:
        """Raises `InvalidRequest` for a body that would take too long to decode."""
        prepared = JsonRequest(request.scope, request.receive)
        refuse_too_many_values(await body_in_turn(prepared))
        return prepared


# -- without FastAPI's router ------------------------------------------------------------------------------------------

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
            without_frames(error)  # a flight raises one error for all its callers, and each would lengthen it


def _again(body: bytes, receive: Receive) -> Receive:
    """Returns a `receive` that returns the body first."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return messages.pop() if messages else await receive()

    return replayed
