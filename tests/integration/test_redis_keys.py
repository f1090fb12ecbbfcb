"""After real traffic, Redis contains only the keys of docs/redis-keys.md, as described there."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from tests.stub_ollama import StubOllama, running_stub
from tests.support.redis_cluster import Cluster
from tests.support.replies import text, texts
from tests.support.service import Service, ask
from tests.support.waiting import wait_until_async

PAGE = Path(__file__).parents[2] / "docs" / "redis-keys.md"
SECONDS = {"s": 1, "days": 24 * 3600}
TYPES = {"hash": "hash", "string": "string", "sorted set": "zset", "list": "list", "stream": "stream"}
TTL, STALE_TTL = 3600, 86400
LIMITED: dict[str, Any] = {"rate_limit_tokens_per_minute": 10**9, "rate_limit_requests_per_minute": 10**6}
LIMITED |= {"token_budget_per_day": 10**9}
QUESTION, PARAPHRASE = "How do I reset my password?", "My password, how do I reset?"


@dataclass(frozen=True)
class Listed:
    """A row of the page. `lifetime` is in seconds, or None."""

    pattern: re.Pattern[str]
    type: str
    lifetime: int | None


def listed(prefix: str = "rag:") -> list[Listed]:
    """Returns the rows of the page, optionally with another prefix."""
    rows = re.findall(r"^\| `rag:(\S+)` \| ([a-z ]+) \| ([^|]+) \|", PAGE.read_text(), re.MULTILINE)
    named = [(prefix + key.replace("{rag:", f"{{{prefix}"), kind, lifetime) for key, kind, lifetime in rows]
    return [Listed(_pattern(key), TYPES[kind], _lifetime(lifetime.strip())) for key, kind, lifetime in named]


def _pattern(key: str) -> re.Pattern[str]:
    """`<scope>`, `<digest>` and `<breaker>` contain no colon; a worker's ID and a model's name may contain anything."""
    parts = re.split(r"(<\w+>)", key)
    free = {
        "<id>": ".+",
        "<model>": ".+",
        "<digest>": "[0-9a-f]{32}",
        "<scope>": "[0-9a-f]{10}-[0-9a-f]{24}",
        "<job>": "[0-9a-f]{16}",
        "<key>": "[0-9a-f]{16}",
        "<owner>": "[0-9a-f]{16}",
        "<document>": "[0-9a-f]{24}",
        "<revision>": "[0-9]+",
        "<number>": "[0-9]+",
        "<minute>": "[0-9]+",
        "<hour>": r"\d{4}-\d\d-\d\dT\d\d",
    }
    spelled = (free.get(part, "[^:{}]+") if part.startswith("<") else re.escape(part) for part in parts)
    return re.compile("".join(spelled))


def _lifetime(text: str) -> int | None:
    if text.startswith("none"):
        return None
    if found := re.match(r"(\d+) (s|days)", text):
        return int(found[1]) * SECONDS[found[2]]
    return TTL + STALE_TTL  # in words: that of an entry


async def assert_as_listed(redis: Redis, rows: list[Listed]) -> set[re.Pattern[str]]:
    """Checks that every key matches a row in type and lifetime. Returns the matched rows."""
    seen = set()
    async for raw in redis.scan_iter():
        key = raw.decode()
        found = [row for row in rows if row.pattern.fullmatch(key)]
        assert len(found) == 1, f"{key} is {'not' if not found else 'more than once'} in docs/redis-keys.md"
        row, ttl = found[0], await redis.pttl(key)
        if ttl == -2:
            continue  # gone meanwhile
        assert text(await redis.type(key)) == row.type, key
        assert (row.lifetime is None) == (ttl == -1), f"{key} lives {ttl} ms, the page says {row.lifetime} s"
        assert row.lifetime is None or ttl <= row.lifetime * 1000, key
        await assert_fields_as_listed(redis, key, row)
        seen.add(row.pattern)
    return seen


async def assert_fields_as_listed(redis: Redis, key: str, row: Listed) -> None:
    """Checks that the page lists every field of a hash, literally or as a pattern (a time, a name, a number)."""
    fields = texts(await redis.hkeys(key)) if row.type == "hash" else []
    page = PAGE.read_text()
    unlisted = [name for name in fields if f"`{re.sub(r'^pool_.*', 'pool_...', name)}`" not in page]
    made_up = (
        r"(embedded|done):[0-9a-f]{10}|stemmer:[a-z]+|[0-9a-f]{10}:[0-9]+|\d+:(ok|slow|fail|slowfail|calls|retries)"
        r"|[0-9a-f]{32}|(vote|label):[0-9a-f]{16}"  # request IDs, voters
        r"|(queries|hits|latency|errors|tokens|rejected|pool|bulkhead|variants):.+|\d\d"  # of a minute, its number
        r"|[^ ]+:latest [0-9a-f]{16}"  # a model and a prompt that a backend has read
        r"|id:[0-9a-f]{16}"  # of an API key
        r"|at:trial|(control|other):(queries|hits|latency|tokens|group):.+"  # of an experiment
        r"|(tenant|question|source|corpus|error|follower|last_evicted|model|(rag|mine):cache):.+|[^ ]+:latest"
    )
    assert [name for name in unlisted if not re.fullmatch(made_up, name)] == [], key


@pytest.fixture
async def fleet(serve: Service) -> list[httpx.AsyncClient]:
    """Two workers with a breaker that opens soon and is half-open a moment later."""
    quick: dict[str, Any] = {"failure_threshold": 2, "timeout": 0.3}
    warm: dict[str, Any] = {"ollama_warm_up": True}
    return [await serve(breaker=quick, ollama=warm, access=LIMITED) for _ in range(2)]


async def drive(client: httpx.AsyncClient, other: httpx.AsyncClient, stub: StubOllama) -> None:
    """Causes a miss, an exact and a semantic hit, an answer with history, overrides, failures and a recovery."""
    assert (await ask(client, QUESTION))["cache"]["status"] == "miss"
    assert (await ask(other, QUESTION))["cache"]["kind"] == "exact"
    assert (await ask(other, PARAPHRASE))["cache"]["kind"] == "semantic"
    await ask(client, QUESTION, history=[{"role": "user", "content": "Hello."}], tenant="acme")
    for override in ("force-open", "force-close", "reset"):
        assert (await client.post(f"/api/circuit-breaker/{override}")).status_code == 200
    stub.behaviour("status", status=500)
    for number in range(3):
        await client.post("/query", json={"question": f"What of number {number}, then?"})
    assert await state_of(client) == "OPEN"
    stub.behaviour("ok")
    await wait_until_async(lambda: is_closed_after_a_question(client))
    forgotten = await client.delete("/api/semantic-cache", params={"question": "Nobody asked this."})
    assert forgotten.status_code == 200
    document = {"title": "Passwords", "text": "A password is reset on the page of one's account.", "source": "p"}
    assert (await client.post("/documents", json=document)).status_code == 201
    gone = (await client.post("/documents", json={"title": "Gone", "text": "A text to be deleted."})).json()
    assert (await client.delete(f"/documents/{gone['id']}")).status_code == 204
    warming = await client.post("/api/semantic-cache/warm", json={"questions": [QUESTION, "Or this?"]})
    assert warming.status_code == 202
    variants = [{"name": "control", "share": 50}, {"name": "other", "share": 50}]
    assert (await client.post("/api/experiments", json={"name": "trial", "variants": variants})).status_code == 201
    key = (await client.post("/api/keys", json={"tenant": "acme"})).json()
    assert (await client.post(f"/api/keys/{key['id']}/rotate")).status_code == 200
    judged: Any = None

    async def is_stored() -> bool:
        nonlocal judged
        judged = await ask(client, "Who may judge this?")
        return judged["cache"]["entry"] is not None

    await wait_until_async(is_stored)  # an answer from an index that is still being filled is not
    assert (await client.post("/feedback", json={"request_id": judged["request_id"], "verdict": "bad"})).is_success
    for path in ("/health", "/metrics", "/api/workers", "/api/semantic-cache/metrics", "/api/connection-pool/metrics"):
        assert (await client.get(path)).status_code == 200


async def state_of(client: httpx.AsyncClient) -> str:
    metrics: dict[str, Any] = (await client.get("/api/circuit-breaker/metrics")).json()
    return str(metrics["state"])


async def is_closed_after_a_question(client: httpx.AsyncClient) -> bool:
    await client.post("/query", json={"question": "And now?"}, headers={"Cache-Control": "no-cache"})
    return await state_of(client) == "CLOSED"


async def test_every_key_is_listed_with_its_type_and_its_lifetime(
    fleet: list[httpx.AsyncClient], redis: Redis, stub: StubOllama
) -> None:
    rows = listed()
    client, other = fleet
    await drive(client, other, stub)
    await ask(fleet[0], "And once it is closed?")
    written_soon = (
        "rag:history:keeper",
        "rag:stats:cache",
        "rag:experiment:trial:figures",
        "rag:cb:{ollama}:window",
        "rag:stats:retries",
        "rag:warmup:ollama",
        "rag:prober",
        "rag:speeds:ollama",
    )
    for key in (*written_soon, "rag:backend:ollama"):
        await wait_until_async(partial(redis.exists, key))
    seen = {pattern.pattern for pattern in await assert_as_listed(redis, rows)}
    unseen = {row.pattern.pattern for row in rows} - seen
    passing = (":draft", ":work", "corpus:work", "upload:[^:{}]+", "embedding:[^:{}]+")
    transient = (*passing, ":permits", ":streams", "bulkhead:\\{[^:{}]+\\}", ":queue", ":waiting", "warm:jobs")
    elsewhere = (
        "rag:erasures",
        "rag:history:\\d{4}",
        "rag:flight:",
        "rag:condensed:",
        "rag:labels",
        "rag:quality",
        "rag:verifier",
        "rag:prefix",
    )
    assert [name for name in unseen if not name.startswith(elsewhere) and not name.endswith(transient)] == [], (
        "listed, and never written"
    )


async def test_a_probe_in_flight_is_a_listed_key_too(
    fleet: list[httpx.AsyncClient], redis: Redis, stub: StubOllama
) -> None:
    client, permits = fleet[0], "rag:cb:{ollama}:permits"
    stub.behaviour("status", status=500)
    for number in range(2):
        await client.post("/query", json={"question": f"What of number {number}, then?"})
    stub.behaviour(delay=1.0, path="/api/chat")
    recovering = asyncio.create_task(wait_until_async(lambda: is_closed_after_a_question(client)))
    await wait_until_async(lambda: redis.exists(permits))
    seen = await assert_as_listed(redis, listed())
    assert [pattern for pattern in seen if pattern.fullmatch(permits)]
    await recovering


async def test_calls_under_way_and_in_line_are_listed_keys_too(serve: Service, redis: Redis, stub: StubOllama) -> None:
    client = await serve(bulkhead={"max_concurrent": 1})
    stub.behaviour(delay=0.5, path="/api/chat")
    asking = [asyncio.create_task(ask(client, f"What of number {number}?")) for number in range(2)]
    await wait_until_async(lambda: redis.exists("rag:bulkhead:{ollama}:queue"))
    seen = await assert_as_listed(redis, listed())
    names = ("rag:bulkhead:{ollama}", "rag:bulkhead:{ollama}:queue", "rag:bulkhead:{ollama}:waiting")
    assert all(any(pattern.fullmatch(name) for pattern in seen) for name in names)
    await asyncio.gather(*asking)


async def test_prompts_that_backends_have_read_are_listed_keys_too(
    serve: Service, redis: Redis, stub: StubOllama
) -> None:
    async with running_stub() as second:
        client = await serve(ollama={"ollama_base_url": f"{stub.base_url},{second.base_url}"})
        await ask(client, "What is long? " + "x" * 1000)
        await wait_until_async(lambda: redis.exists("rag:prefix"))
        seen = {pattern.pattern for pattern in await assert_as_listed(redis, listed())}
    assert {"rag:prefix", "rag:prefix:[^:{}]+"} <= seen


async def test_nothing_is_written_outside_the_prefix(serve: Service, redis: Redis, stub: StubOllama) -> None:
    client = await serve(redis={"prefix": "mine:"})
    await ask(client, QUESTION)
    await client.post("/api/circuit-breaker/reset")
    assert {key async for key in redis.scan_iter() if not key.startswith(b"mine:")} == set()
    await assert_as_listed(redis, listed("mine:"))
    indexes: Any = await redis.execute_command("FT._LIST")  # type: ignore[no-untyped-call]
    assert all(name.startswith(b"mine:index:cache:") for name in indexes)


async def test_on_a_cluster_the_names_are_those_of_the_page_too(cluster_serve: Service, cluster: Cluster) -> None:
    one, other = await cluster_serve(access=LIMITED), await cluster_serve()
    assert (await one.post("/api/keys", json={"tenant": "acme"})).status_code == 201
    history = [{"role": "user", "content": "Hello."}]
    given = {"title": "T", "text": "Passwords are reset by the office.", "source": "s"}
    assert (await one.post("/documents", json=given)).status_code == 201
    await asyncio.gather(*(ask(client, question) for client in (one, other) for question in (QUESTION, PARAPHRASE)))
    await ask(other, QUESTION, history=history)
    await one.delete("/api/semantic-cache", params={"question": PARAPHRASE})
    judged = await ask(one, "Who may judge this?")
    assert (await one.post("/feedback", json={"request_id": judged["request_id"], "verdict": "bad"})).is_success
    headers = {"Content-Type": "application/jsonl"}
    await one.post("/api/semantic-cache/warm", content=f'"{QUESTION}"', headers=headers)
    tagged = named_on_a_cluster()
    seen: set[str] = set()
    for server in cluster.servers:
        async with Redis(port=server.port, decode_responses=True) as client:
            seen |= {key async for key in client.scan_iter()}
    assert {key for key in seen if not any(pattern.fullmatch(key) for pattern in tagged)} == set()
    assert sum("{docs}" in key for key in seen) >= 6
    assert sum("{fleet}" in key for key in seen) >= 5
    assert sum("{p" in key for key in seen) >= 6


def named_on_a_cluster() -> list[re.Pattern[str]]:
    """Returns the names of the second table with their possible suffixes, and the unchanged names."""
    lines = re.findall(r"^\| (`rag:[^|]+) \| (`rag:[^|]+) \|$", PAGE.read_text(), re.MULTILINE)
    changed = {name for before, _ in lines for name in re.findall(r"`(rag:[^`]+)`", before)}
    names = {name for _, after in lines for name in re.findall(r"`(rag:[^`]+)`", after)}
    followed = [re.compile(f"(?:{_pattern(name).pattern})(:[a-z]+)?") for name in names]
    rows = re.findall(r"^\| `(rag:\S+)` \| [a-z ]+ \| [^|]+ \|", PAGE.read_text(), re.MULTILINE)
    same = [name for name in rows if not any(name == one or name.startswith(f"{one}:") for one in changed)]
    assert 5 < len(same) < len(rows)
    return [*followed, *map(_pattern, same)]
