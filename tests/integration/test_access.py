"""API keys over HTTP."""

from __future__ import annotations

import pytest
from starlette.requests import Request

from api.endpoints.access import Access
from api.errors import NotAuthenticated, NotAuthorized
from tests.support.service import Service, ask

KEYS = {"access": {"api_keys": "acme=a-key,globex=g-key", "admin_keys": "root-key"}}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def test_with_keys_a_query_needs_one(serve: Service) -> None:
    client = await serve(**KEYS)
    for headers in ({}, bearer("wrong"), {"Authorization": "Basic a-key"}, {"Authorization": "Bearer"}):
        response = await client.post("/query", json={"question": "Who?"}, headers=headers)
        assert (response.status_code, response.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert (await client.post("/query", json={"question": "Who?"}, headers=bearer("a-key"))).status_code == 200


async def test_the_key_fixes_the_tenant(serve: Service) -> None:
    client = await serve(**KEYS)
    await ask(client, "Who?", headers=bearer("a-key"))
    assert (await ask(client, "Who?", headers=bearer("g-key")))["cache"]["status"] == "miss"
    assert (await ask(client, "Who?", headers=bearer("a-key"), tenant="acme"))["cache"]["status"] == "hit"
    other = await client.post("/query", json={"question": "Who?", "tenant": "globex"}, headers=bearer("a-key"))
    assert other.status_code == 403


async def test_admin_endpoints_need_an_admin_key(serve: Service) -> None:
    client = await serve(**KEYS)
    path = "/api/circuit-breaker/reset"
    assert (await client.post(path)).status_code == 401
    assert (await client.post(path, headers=bearer("a-key"))).status_code == 403
    assert (await client.post(path, headers=bearer("root-key"))).status_code == 200


@pytest.mark.parametrize(
    ("host", "allowed"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("::ffff:127.0.0.1", True), ("10.0.0.1", False)],
)
def test_without_admin_keys_only_this_machine_is_admin(host: str, *, allowed: bool) -> None:
    request = Request({"type": "http", "headers": [], "client": (host, 1)})
    access = Access({}, ())
    if allowed:
        access.require_admin(request)
    else:
        with pytest.raises(NotAuthorized):
            access.require_admin(request)


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({"host": "127.0.0.1:8001"}, True),
        ({"host": "localhost:8001"}, True),
        ({"host": "LOCALHOST"}, True),
        ({"host": "[::1]:8001"}, True),
        ({"host": "[::1]"}, True),
        ({"host": "localhost:8001", "origin": "http://localhost:8001", "sec-fetch-site": "same-origin"}, True),
        ({"host": "localhost:8001", "origin": "http://evil.example"}, False),
        ({"host": "localhost:8001", "origin": "http://localhost:3000"}, False),
        ({"host": "localhost:8001", "origin": "null"}, False),
        ({"host": "localhost:8001", "sec-fetch-site": "cross-site"}, False),
        ({"host": "localhost:8001", "sec-fetch-site": "same-site"}, False),
        ({"host": "evil.example:8001"}, False),
        ({"host": "evil.example:8001", "origin": "http://evil.example:8001"}, False),
        ({"host": "127.0.0.1.evil.example"}, False),
        ({"host": "10.0.0.1:8001"}, False),
    ],
)
async def test_without_admin_keys_no_other_web_page_is_admin(
    serve: Service, headers: dict[str, str], *, allowed: bool
) -> None:
    client = await serve()
    response = await client.post("/api/circuit-breaker/reset", headers=headers)
    assert response.status_code == (200 if allowed else 403)


async def test_with_admin_keys_the_key_alone_decides(serve: Service) -> None:
    client = await serve(**KEYS)
    headers = {"Host": "ragherd.example", "Origin": "https://console.example", **bearer("root-key")}
    assert (await client.post("/api/circuit-breaker/reset", headers=headers)).status_code == 200


@pytest.mark.parametrize("content", [b"{", b'{"colour": "red"}', b"\xff"])
async def test_without_a_key_nothing_is_said_of_the_body(serve: Service, content: bytes) -> None:
    client = await serve(**KEYS)
    json = {"Content-Type": "application/json"}
    assert (await client.post("/query", content=content, headers=json)).status_code == 401
    assert (await client.post("/query", content=content, headers=json | bearer("a-key"))).status_code == 422
    assert (await client.post("/query", content=content, headers=json | bearer("root-key"))).status_code == 422


def test_keys_that_are_not_ascii_are_refused_not_crashed_on() -> None:
    request = Request({"type": "http", "headers": [(b"authorization", b"Bearer \xff\xfe")], "client": ("1.2.3.4", 1)})
    with pytest.raises(NotAuthenticated):
        Access({"k": "t"}, ("a",)).require_admin(request)
