"""Erasing a tenant leaves nothing of it in Redis, and nothing comes back from what was in progress."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner

from api.ports.answer_quality import Evidence, Label, LabelledPair, PolicyName, Verdict, Versions
from api.redis_store.connections import BatchingRedis
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.stores.label_store import RedisLabels
from api.redis_store.stores.tenant_erasure import RedisTenantErasure
from api.values import owner_of
from ragherd.commands import commands
from tests.stub_ollama import StubOllama
from tests.support.every_value import everything
from tests.support.redis_cluster import Cluster
from tests.support.service import Service, ask
from tests.support.waiting import wait_until_async

TENANT, OTHER = "zebrafish & co/7", "quokka"
MARK = b"zebrafish"
TOLD: dict[str, Any] = {
    "server": {"log_questions": True, "log_level": "error"},
    "cache": {"keep_pairs": True, "shadow_rate": 1.0, "condense": True},
}
ASKED = 12
"""Questions that `live` asks."""
NAMED_BY_DIGEST = ("rag:erasures", "rag:deleted", "rag:invalidated", "rag:audit")
"""The keys that may still have the tenant's digest: what keeps it erased."""


async def erase(client: httpx.AsyncClient, *, dry_run: bool = False) -> dict[str, int]:
    path = "/api/tenants/" + TENANT.replace(" ", "%20").replace("&", "%26").replace("/", "%2F")
    response = await client.delete(path, params={"dry_run": dry_run}, timeout=60)
    assert response.status_code == 200, response.text
    found: dict[str, int] = response.json()["erased"]
    return found


async def live(client: httpx.AsyncClient, other: httpx.AsyncClient) -> None:
    """One tenant uses everything that stores something; the other asks and stores a little too."""
    for tenant in (TENANT, OTHER):
        name = tenant.partition(" ")[0]
        for source in (None, f"https://{name}.example"):
            document = {"title": f"On the {name}", "text": f"The {name} is fed at noon. " * 3, "tags": [name]}
            given = {**document, "source": source, "tenant": tenant} if source else {**document, "tenant": tenant}
            assert (await client.post("/documents", json=given)).status_code == 201
        first = await ask(client, f"When is the {name} fed?", tenant=tenant)
        assert first["sources"]
        await ask(other, f"When is the {name} fed?", tenant=tenant)
        await ask(other, f"The {name}, when is it fed?", tenant=tenant)
        history = [{"role": "user", "content": f"I like the {name}."}, {"role": "assistant", "content": "So do I."}]
        await ask(client, f"Is the {name} it?", tenant=tenant, history=history)
        questions = [{"question": f"Where does the {name} live?", "tenant": tenant}]
        assert (await client.post("/api/semantic-cache/warm", json={"questions": questions})).status_code == 202
        params = {"question": f"What of the {name}?", "tenant": tenant}
        assert (await client.delete("/api/semantic-cache", params=params)).status_code == 200
        assert (await client.delete("/api/semantic-cache", params={"tenant": f"{tenant}"})).status_code == 200
        await ask(client, f"When is the {name} fed?", tenant=tenant)
        assert (await client.post("/api/keys", json={"tenant": tenant})).status_code == 201
        judged = await ask(other, f"Who keeps the {name}?", tenant=tenant)
        vote = {"request_id": judged["request_id"], "tenant": tenant}
        for verdict in ("good", "bad"):
            said = {**vote, "verdict": verdict, "comment": f"Wrong about the {name}."}
            assert (await client.post("/feedback", json=said)).status_code == 202


def traces(found: dict[bytes, bytes]) -> list[bytes]:
    """Returns the keys that name the tenant or have a text of it, percent-encoded or not."""
    return [key for key, value in found.items() if MARK in key.lower() or MARK in value.lower()]


def named_by_digest(found: dict[bytes, bytes]) -> set[str]:
    owner = owner_of(TENANT).encode()
    keys = [key.decode() for key, value in found.items() if owner in key or owner in value]
    return {key for key in keys if not key.startswith(NAMED_BY_DIGEST)}


async def export(redis_url: str, file: Path) -> Counter[str]:
    """Returns how many lines of each kind an export has. None names the other tenant."""
    arguments, environment = ["export", str(file), "--tenant", TENANT], {"REDIS_URL": redis_url}
    result = await asyncio.to_thread(lambda: CliRunner().invoke(commands, arguments, env=environment))
    assert result.exit_code == 0, result.output
    assert file.stat().st_mode & 0o077 == 0
    text = file.read_text()
    assert OTHER not in text
    return Counter(json.loads(line)["is"] for line in text.splitlines())


async def restored(redis_url: str, file: Path) -> dict[str, int]:
    """Returns what became of the documents of an export that was restored."""
    arguments = ["restore", str(file), "--documents", "--json"]
    result = await asyncio.to_thread(lambda: CliRunner().invoke(commands, arguments, env={"REDIS_URL": redis_url}))
    assert result.exit_code == 0, result.output
    found: dict[str, int] = json.loads(result.stdout)["documents"]
    return found


async def all_written(*nodes: Redis) -> None:
    """Waits until the workers have written what the dashboard shows: they hold it for up to a second."""

    async def is_written() -> bool:
        found = [value for node in nodes for key, value in (await everything(node)).items() if key == b"rag:recent"]
        return b"".join(found).count(b"\nquestion\n") >= ASKED

    await wait_until_async(is_written)


async def nothing_left(*nodes: Redis) -> dict[bytes, bytes]:
    """Returns what Redis has when nothing of the tenant is left: at once, or after the first repetition.

    A worker may still compare two answers when the tenant is erased.
    """
    left: dict[bytes, bytes] = {}

    async def is_gone() -> bool:
        left.clear()
        for node in nodes:
            left.update(await everything(node))
        return not traces(left) and not named_by_digest(left)

    try:
        await wait_until_async(is_gone, timeout=30)
    except AssertionError:
        assert (traces(left), named_by_digest(left)) == ([], set())
        raise
    return left


async def test_nothing_of_the_tenant_is_left_and_all_of_the_others(
    serve: Service, redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    client, other = await serve(**TOLD), await serve(**TOLD)
    await live(client, other)

    async def is_judged() -> bool:
        return bool(await redis.xlen("rag:labels")) and bool(await redis.exists("rag:recent"))

    await wait_until_async(is_judged)
    await all_written(redis)
    before = await everything(redis)
    assert len(traces(before)) > 20
    exported = await export(redis_url, tmp_path / "export.jsonl")
    assert exported["document"] == 2
    assert {"header", "answer", "label", "quarantined", "end"} <= exported.keys()
    expected = await erase(client, dry_run=True)
    assert len(traces(await everything(redis))) >= len(traces(before)) - 5, "a dry run changes nothing"
    for kind in ("documents", "answers", "served", "votes", "condensed", "labels", "keys"):
        assert expected[kind] > 0, expected
    erased = await erase(client)
    assert erased["documents"] == 2
    left = await nothing_left(redis)
    assert (await client.get("/documents", params={"tenant": TENANT})).json()["documents"] == []
    assert len((await client.get("/documents", params={"tenant": OTHER})).json()["documents"]) == 2
    assert (await ask(other, "When is the quokka fed?", tenant=OTHER))["cache"]["status"] == "hit"
    assert any(b"quokka" in key or b"quokka" in value for key, value in left.items())
    assert await restored(redis_url, tmp_path / "export.jsonl") == {"erased since": 2}
    assert traces(await everything(redis)) == []
    again = await ask(other, "When is the zebrafish fed?", tenant=TENANT)
    assert (again["cache"]["status"], again["sources"]) == ("miss", [])


async def test_what_is_in_progress_does_not_come_back(serve: Service, redis: Redis, stub: StubOllama) -> None:
    client, other = await serve(**TOLD), await serve(**TOLD)
    stub.behaviour(mode="hang", path="/api/chat")
    calls = [
        asyncio.create_task(one.post("/query", json={"question": "When is the zebrafish fed?", "tenant": TENANT}))
        for one in (client, other)
    ]
    questions = [{"question": f"Where is zebrafish {number}?", "tenant": TENANT} for number in range(40)]
    assert (await client.post("/api/semantic-cache/warm", json={"questions": questions})).status_code == 202

    async def under_way() -> bool:
        figures = (await client.get("/api/bulkhead/metrics")).json()
        flights = [key async for key in redis.scan_iter("rag:flight:*")]
        return bool(figures["in_use"] >= 2 and flights)

    await wait_until_async(under_way)
    erased = await erase(client)
    assert erased["warm_ups"] == 1
    stub.behaviour("ok")
    stub.break_connections()
    statuses = {(await call).status_code for call in calls}
    assert statuses <= {200, 502}

    async def at_rest() -> bool:
        return not (await client.get("/api/bulkhead/metrics")).json()["in_use"]

    await wait_until_async(at_rest)
    for key in [key async for key in redis.scan_iter("rag:flight:*:words")]:
        assert 0 < await redis.pttl(key) <= 10_000
        await redis.delete(key)
    assert [key async for key in redis.scan_iter("rag:cache:*")] == []
    assert (await ask(other, "When is the zebrafish fed?", tenant=TENANT))["cache"]["status"] == "miss"


async def test_an_answer_that_arrives_late_reaches_its_caller_and_nobody_else(
    serve: Service, redis: Redis, stub: StubOllama
) -> None:
    client, other = await serve(**TOLD), await serve(**TOLD)
    stub.behaviour(delay=1.0, path="/api/chat")
    asking = asyncio.create_task(ask(client, "When is the zebrafish fed?", tenant=TENANT))
    await wait_until_async(lambda: redis.exists("rag:bulkhead:{ollama}"))
    await erase(other)
    assert (await asking)["answer"]
    assert [key async for key in redis.scan_iter("rag:cache:*")] == []
    stub.behaviour("ok")
    assert (await ask(other, "When is the zebrafish fed?", tenant=TENANT))["cache"]["status"] == "miss"


@pytest.fixture
async def gate(redis: BatchingRedis) -> HealthGatedRedis:
    gate = HealthGatedRedis(redis, 8)
    assert await gate.check()
    return gate


async def test_it_is_repeated_for_what_a_worker_still_held(gate: HealthGatedRedis, redis: Redis) -> None:
    erasure = RedisTenantErasure(gate, gate, Keys(), "one", ["ollama"])
    labels, scope = RedisLabels(gate, Keys()), f"{'a' * 10}-{'1' * 24}"
    await erasure.erase(TENANT, False)
    label = Label(Evidence(0.8), Verdict.SAME, "miss", False, "semantic", PolicyName.OBSERVE, Versions("embedder"))
    for tenant in (TENANT, OTHER):
        own = f"{'a' * 10}-{owner_of(tenant)}{'0' * 8}"
        pair = LabelledPair(f"Who fed {tenant}?", f"Is {tenant} fed?", Verdict.SAME, own)
        await labels.append(own, tenant, label, pair)
    await erasure.repeat_due()
    assert traces(await everything(redis)), "not due yet"
    for stage in range(3):
        listed: Any = await redis.zrange("rag:erasures", 0, -1, withscores=True)
        [(name, due)] = listed
        assert name.split(b":")[1] == str(stage).encode()
        await redis.zadd("rag:erasures", {name: due - 3_600_000})
        await erasure.repeat_due()
        assert traces(await everything(redis)) == []
        await labels.append(scope, TENANT, label)
    assert await redis.zcard("rag:erasures") == 0
    assert len((await labels.pooled("", 10))[0]) == 2, "the other tenant's, and what came after the last repetition"


async def test_on_a_cluster_nothing_is_left_either(cluster_serve: Service, cluster: Cluster) -> None:
    client, other = await cluster_serve(**TOLD), await cluster_serve(**TOLD)
    await live(client, other)
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(Redis(port=server.port)) for server in cluster.servers]
        await all_written(*nodes)
        erased = await erase(client)
        assert erased["documents"] == 2
        left = await nothing_left(*nodes)
    assert any(b"quokka" in value for value in left.values())
    assert (await ask(other, "When is the quokka fed?", tenant=OTHER))["cache"]["status"] == "hit"


async def test_only_an_admin_erases(serve: Service) -> None:
    client = await serve(access={"api_keys": "acme=a-key-of-acme", "admin_keys": "the-admin-key"})
    for key, status in (("wrong", 401), ("a-key-of-acme", 403), ("the-admin-key", 200)):
        response = await client.delete("/api/tenants/acme", headers={"Authorization": f"Bearer {key}"})
        assert response.status_code == status
