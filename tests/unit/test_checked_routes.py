"""Every route declares who may call it, and checks that before it reads the body."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from fastapi import APIRouter, FastAPI, Request
from fastapi.routing import iter_route_contexts

from api.app import create_app
from api.endpoints.access import Access
from api.endpoints.routes import CheckedRoute, needs, role_of
from api.settings import Settings

PAGES = {"/openapi.json"}
KEYS = {"none": b"", "unknown": b"Bearer none-of-them", "user": b"Bearer a-key"}


@pytest.fixture(scope="module")
def app() -> FastAPI:
    return create_app(Settings())


@pytest.fixture(autouse=True)
def unrendered() -> Iterator[None]:
    """Endpoints that need no key fail in this test's empty worker. Rendering their tracebacks takes long."""
    with structlog.testing.capture_logs():
        yield


def routes(app: FastAPI) -> list[tuple[str, str, Any]]:
    """Returns the method, path and endpoint of each route."""
    found = iter_route_contexts(app.routes)
    return [
        (method, route.path or "", route.endpoint) for route in found for method in sorted(route.methods or {"GET"})
    ]


class Call:
    """A request to the app. Its body must not be read."""

    def __init__(self, method: str, path: str, authorization: bytes) -> None:
        self.has_read = False
        self.status = 0
        access = Access({"a-key": "acme"}, ["root-key"])
        self.scope = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "path": path.replace("{", "").replace("}", ""),
            "query_string": b"",
            "headers": [
                (b"host", b"ragherd"),
                (b"authorization", authorization),
                (b"content-type", b"application/json"),
            ],
            "client": ("10.0.0.1", 1),
            "state": {"worker": SimpleNamespace(access=access)},
        }

    async def to(self, app: FastAPI) -> Call:
        await app(self.scope, self._receive, self._send)
        return self

    async def _receive(self) -> Any:
        self.has_read = True
        raise AssertionError("a body was read before the key was checked")

    async def _send(self, message: Any) -> None:
        self.status = message.get("status", self.status)


def test_every_route_declares_who_may_call_it(app: FastAPI) -> None:
    declared = {(method, path): role_of(endpoint) for method, path, endpoint in routes(app) if path not in PAGES}
    assert len(declared) > 25
    writing = {place for place in declared if place[0] not in {"GET", "HEAD"}}
    assert {declared[place] for place in writing} == {"user", "admin"}


@pytest.mark.parametrize("key", KEYS)
async def test_no_body_is_read_without_the_required_key(app: FastAPI, key: str) -> None:
    for method, path, endpoint in routes(app):
        role = "all" if path in PAGES else role_of(endpoint)
        if key == "user" and role == "user":
            continue
        call = await Call(method, path, KEYS[key]).to(app)
        assert not call.has_read, f"{method} {path}"
        if role in {"user", "admin"}:
            assert call.status == (403 if key == "user" else 401), f"{method} {path}"


async def test_the_body_is_read_with_the_key(app: FastAPI) -> None:
    call = await Call("POST", "/api/chat", KEYS["user"]).to(app)
    assert call.has_read
    assert call.status == 500


def test_a_route_without_a_declaration_fails_the_startup() -> None:
    router = APIRouter(route_class=CheckedRoute)

    async def forgotten(request: Request) -> None:
        await request.body()

    with pytest.raises(TypeError, match="forgotten: declare who may call it"):
        router.post("/forgotten")(forgotten)
    router.post("/forgotten")(needs("admin")(forgotten))


async def test_a_query_string_with_too_many_parameters_is_refused(app: FastAPI) -> None:
    call = Call("GET", "/documents", KEYS["user"])
    call.scope["query_string"] = b"&".join(b"a%d=1" % number for number in range(10_000))
    assert (await call.to(app)).status == 422
