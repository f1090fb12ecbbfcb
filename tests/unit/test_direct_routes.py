"""An endpoint called directly answers like one that FastAPI calls: the same bytes, the same errors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request, Response
from starlette.exceptions import HTTPException

from api.endpoints import problems
from api.endpoints.middleware import RequestContext
from api.endpoints.routes import CheckedRoute, DirectRoutes, JsonRoute, direct_handler, needs
from api.endpoints.validation import StrictBody
from api.errors import RateLimited

ANY = SimpleNamespace(access=None)


class Asked(StrictBody):
    number: int


async def with_body(body: Asked, request: Request) -> Response:
    if body.number == 429:
        raise RateLimited("requests", 1.0)
    if body.number == 418:
        raise HTTPException(418, "a teapot")
    return Response(f"{body.number} {request.url.path} {request.path_params}")


async def alone(request: Request) -> Response:
    return Response(await request.body())


def client(*, direct: bool) -> httpx.AsyncClient:
    app = FastAPI()
    routers = [APIRouter(route_class=JsonRoute), APIRouter(route_class=CheckedRoute)]
    routers[0].post("/body")(needs("all")(with_body))
    routers[1].post("/alone")(needs("all")(alone))
    problems.install(app)
    for router in routers:
        app.include_router(router)
    if direct:
        routes = [route for router in routers for route in router.routes]
        app.add_middleware(DirectRoutes, routes=routes, handlers=app.exception_handlers)
    app.add_middleware(RequestContext, worker="w")
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("/body", b'{"number":1}', "application/json"),
        ("/body", b'{"number":1}', "application/json; charset=utf-8"),
        ("/body", b'{"number":1}', "text/plain"),
        ("/body", b'{"number":"1","other":2}', "application/json"),
        ("/body", b'{"number":', "application/json"),
        ("/body", b"", "application/json"),
        ("/body", b"null", "application/json"),
        ("/body", b'{"number":429}', "application/json"),
        ("/body", b'{"number":418}', "application/json"),
        ("/body/", b'{"number":1}', "application/json"),
        ("/body?" + "&a=1" * 70, b'{"number":1}', "application/json"),
        ("/alone", b"some bytes", "text/plain"),
        ("/alone", b"", "text/plain"),
    ],
)
async def test_both_ways_give_the_same_response(path: str, body: bytes, kind: str) -> None:
    headers = {"Content-Type": kind, "X-Request-ID": "r-1"}
    answers = []
    for direct in (False, True):
        async with client(direct=direct) as http:
            answers.append(await http.post(path, content=body, headers=headers))
    expected, found = answers
    assert (found.status_code, found.content) == (expected.status_code, expected.content)
    assert found.headers == expected.headers


async def test_other_methods_are_refused_by_fastapi() -> None:
    async with client(direct=True) as http:
        response = await http.get("/body")
    assert response.status_code == 405
    assert response.headers["Allow"] == "POST"


async def test_an_error_in_the_middle_of_a_response_is_not_answered_again() -> None:
    class Broken(Response):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            raise RateLimited("requests", 1.0)

    async def breaks(request: Request) -> Response:
        return Broken()

    router = APIRouter(route_class=CheckedRoute)
    router.get("/breaks")(needs("all")(breaks))
    app = FastAPI()
    problems.install(app)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message["type"])

    scope = {"type": "http", "method": "GET", "path": "/breaks", "query_string": b"", "headers": []}
    with pytest.raises(RateLimited):
        await DirectRoutes(app, router.routes, app.exception_handlers)(scope, lambda: None, send)  # type: ignore[arg-type,return-value]
    assert sent == ["http.response.start"]


def test_what_fastapi_must_do_itself_is_left_to_it() -> None:
    async def returns_fields(request: Request) -> dict[str, int]:
        return {}

    async def takes_more(request: Request, page: int) -> Response:
        return Response()

    async def needs_no_request() -> Response:
        return Response()

    assert [direct_handler(one) for one in (returns_fields, takes_more, needs_no_request)] == [None] * 3
    assert direct_handler(alone) is alone
