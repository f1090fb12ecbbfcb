"""Keys, over HTTP."""

from __future__ import annotations

import pytest
from starlette.requests import Request

from api.endpoints.access import Access
from api.errors import NotAuthenticated, NotAuthorized
from tests.service import Service, ask

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


def test_keys_that_are_not_ascii_are_refused_not_crashed_on() -> None:
    request = Request({"type": "http", "headers": [(b"authorization", b"Bearer \xff\xfe")], "client": ("1.2.3.4", 1)})
    with pytest.raises(NotAuthenticated):
        Access({"k": "t"}, ("a",)).require_admin(request)
