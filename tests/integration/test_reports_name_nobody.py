"""Reports to callers without an admin key contain figures, but no tenants, questions or keys."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from api.values import owner_of
from tests.stub_ollama import StubOllama
from tests.support.service import Service, ask
from tests.support.waiting import wait_until_async

SECRETS = ("tenant-acme", "tenant-globex", "a-key-of-acme", "g-key-of-globex", "the-admin-key", "zebrafish", "quokka")
KEYS = {"api_keys": "tenant-acme=a-key-of-acme,tenant-globex=g-key-of-globex", "admin_keys": "the-admin-key"}
REPORTS = (
    "/api/bulkhead/metrics",
    "/api/circuit-breaker/history",
    "/api/circuit-breaker/metrics",
    "/api/circuit-breaker/recovery",
    "/api/connection-pool/metrics",
    "/api/history",
    "/api/semantic-cache/metrics",
    "/api/workers",
    "/health",
    "/metrics",
    "/openapi.json",
)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def busy_service(
    serve: Service, stub: StubOllama
) -> tuple[httpx.AsyncClient, list[asyncio.Task[httpx.Response]]]:
    """One tenant has an answered question; another has one in progress and one waiting."""
    client = await serve(access=KEYS, bulkhead={"max_concurrent": 1, "max_queue": 1})
    await ask(client, "When is the zebrafish fed?", headers=bearer("a-key-of-acme"))
    stub.behaviour(mode="hang", path="/api/chat")
    calls = []
    for number in (1, 2):
        body = {"question": f"What is quokka number {number}?"}
        calls.append(asyncio.create_task(client.post("/query", json=body, headers=bearer("g-key-of-globex"))))

        async def begun(number: int = number) -> bool:
            figures = (await client.get("/api/bulkhead/metrics")).json()
            return bool(figures["in_use"] + figures["waiting"] == number)

        await wait_until_async(begun)
    return client, calls


@pytest.mark.parametrize("headers", [{}, bearer("wrong"), bearer("a-key-of-acme")], ids=["none", "wrong", "user"])
async def test_only_an_admin_sees_names(serve: Service, stub: StubOllama, headers: dict[str, str]) -> None:
    client, calls = await busy_service(serve, stub)
    for path in REPORTS:
        report = await client.get(path, headers=headers)
        assert report.status_code == 200, path
        assert [secret for secret in SECRETS if secret in report.text] == [], path
    figures = (await client.get("/api/bulkhead/metrics", headers=headers)).json()
    assert (figures["waiting"], figures["waiting_tenants"], figures["waiting_by_tenant"]) == (1, 1, None)
    admins = (await client.get("/api/bulkhead/metrics", headers=bearer("the-admin-key"))).json()
    assert admins["waiting_by_tenant"] == {"tenant-globex": 1}
    stub.behaviour("ok")
    stub.break_connections()
    await asyncio.gather(*calls)


async def test_without_keys_this_machine_sees_names_and_a_web_page_does_not(serve: Service) -> None:
    client = await serve()
    assert (await client.get("/api/bulkhead/metrics")).json()["waiting_by_tenant"] == {}
    page = {"Host": "evil.example"}
    assert (await client.get("/api/bulkhead/metrics", headers=page)).json()["waiting_by_tenant"] is None


async def test_the_log_names_tenants_by_a_digest_only(
    serve: Service, stub: StubOllama, capfd: pytest.CaptureFixture[str]
) -> None:
    client = await serve(access=KEYS)
    acme, admin = bearer("a-key-of-acme"), bearer("the-admin-key")
    answer = await ask(client, "When is the zebrafish fed?", headers=acme)
    vote = {"request_id": answer["request_id"], "verdict": "bad"}
    assert (await client.post("/feedback", json=vote, headers=acme)).status_code == 202
    deleted = await client.delete("/api/semantic-cache", params={"tenant": "tenant-acme"}, headers=admin)
    assert deleted.status_code == 200
    stub.behaviour("status", status=500)
    assert (await client.post("/query", json={"question": "Is the quokka fed?"}, headers=acme)).status_code == 502
    log = capfd.readouterr().err
    for event in ("feedback", "cache_invalidated", "query_failed"):
        [line] = [line for line in log.splitlines() if f'"event":"{event}"' in line]
        assert f'"tenant_hash":"{owner_of("tenant-acme")}"' in line
    assert [secret for secret in SECRETS if secret in log] == []
