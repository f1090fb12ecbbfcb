"""Declares who may call an endpoint, next to the endpoint, and checks it before the body is read."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute

from api.endpoints.access import Role
from api.endpoints.validation import refuse_too_many_values
from api.errors import InvalidRequest

MAX_PARAMETERS: Final = 64
"""Parameters in a query string. No endpoint has as many, and each unknown one costs a validation error."""
_ROLE: Final = "ragherd_role"

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def needs(role: Role) -> Callable[[Endpoint], Endpoint]:
    """Declares who may call an endpoint. Place it below the route's decorator."""

    def declared(endpoint: Endpoint) -> Endpoint:
        setattr(endpoint, _ROLE, role)
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
        role, handler = role_of(self.endpoint), super().get_route_handler()

        async def checked(request: Request) -> Response:
            if role != "all":
                request.state.worker.access.admit(request, role)
            if request.scope["query_string"].count(b"&") >= MAX_PARAMETERS:
                raise InvalidRequest(f"The query string has more than {MAX_PARAMETERS} parameters.")
            return await handler(await self.prepared(request))

        return checked

    async def prepared(self, request: Request) -> Request:
        """Returns the request for FastAPI to read, after the key was checked."""
        return request


class JsonRoute(CheckedRoute):
    """A checked route with a JSON body that FastAPI validates."""

    async def prepared(self, request: Request) -> Request:
        """Raises `InvalidRequest` for a body that would take too long to decode."""
        prepared = _JsonRequest(request.scope, request.receive)
        refuse_too_many_values(await prepared.body())
        return prepared


class _JsonRequest(Request):
    async def json(self) -> Any:
        """Raises `JSONDecodeError` for every kind of invalid JSON. The standard library raises other errors for invalid
        UTF-8, deep nesting or huge numbers, and FastAPI turns those into a 400.
        """
        return orjson.loads(await self.body())
