"""Labels from misses, and answer groups, on real workers. The stub's answers decide which are the same."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from api.embedded.redis_server import EmbeddedRedis
from api.quality.comparator import Comparator
from api.redis_store.keys import Keys
from api.redis_store.stores.label_store import LIFETIME_MS
from tests.integration.test_redis_keys import assert_as_listed, listed
from tests.stub_ollama import StubOllama
from tests.support.redis_cluster import Cluster
from tests.support.replies import text
from tests.support.service import Service, ask, make_settings, running_service
from tests.support.waiting import wait_until_async

KEYS = Keys()
QUESTION, OLD, QUICK = (
    "How do I reset my password?",
    "How do I reset my old password?",  # cosine .866 to the first
    "How do I reset my password quickly?",  # .812 to the first, .74 to the second
)
ELSEWHERE = "Can you tell me when the shop opens?"  # .1
SAME, ANOTHER = "Use the link on the page.", "It takes 5 days, not 3."


async def labels(redis: Redis, key: str = KEYS.labels) -> list[dict[str, str]]:
    entries: Any = await redis.xrange(key)
    return [{text(name): text(value) for name, value in found.items()} for _, found in entries]


async def labelled(redis: Redis, count: int) -> list[dict[str, str]]:
    """Waits until there are this many labels."""

    async def written() -> bool:
        return bool(await redis.xlen(KEYS.labels) >= count)

    await wait_until_async(written)
    return await labels(redis)


async def said(client: httpx.AsyncClient, stub: StubOllama, question: str, answer: str, **more: Any) -> str:
    """Asks a question that gets this answer, and returns its entry."""
    stub.behaviour(answer=answer, path="/api/chat")
    answered = await ask(client, question, **more)
    assert answered["cache"]["status"] in ("miss", "bypass")
    return str(answered["cache"]["entry"])


async def group(redis: Redis, entry: str) -> str:
    """Returns the group of an entry; that of a group of one if it has no field."""
    created, name = await redis.hmget(entry, "created_ms", "group")
    return text(name) if name is not None else f"{text(created)}-{entry[-32:-24]}"


async def metric(client: httpx.AsyncClient, series: str) -> float:
    lines = (await client.get("/metrics")).text.splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{series} ")), 0.0)


# -- labels ------------------------------------------------------------------------------------------------------------


async def test_a_miss_beside_a_near_entry_is_labelled_by_comparing_the_answers(
    serve: Service, stub: StubOllama, redis: Redis
) -> None:
    client = await serve()
    entry = await said(client, stub, QUESTION, SAME, tenant="acme")
    await said(client, stub, OLD, SAME, tenant="acme")
    (label,) = await labelled(redis, 1)
    assert (label["source"], label["served"], label["verdict"]) == ("miss", "0", "same")
    assert (label["kind"], label["policy"], label["probability"]) == ("semantic", "guarded", "1.0")
    assert (label["tenant"], label["scope"]) == ("acme", entry.split(":")[2])
    assert float(label["similarity"]) == pytest.approx(0.866, abs=0.001)
    assert float(label["other"]) == pytest.approx(0.816, abs=0.001)
    assert (label["same"], label["others"], label["guard"], label["verifier"]) == ("1.0", "0.0", "", "")
    assert label["comparator"].startswith("facts-")
    assert label["embedder"] == label["scope"].partition("-")[0]
    assert await labels(redis, KEYS.labels_of(label["scope"])) == [label]
    assert 0 < await redis.pttl(KEYS.labels) <= LIFETIME_MS
    assert await metric(client, 'ragherd_cache_labels_total{source="miss",verdict="same"}') == 1


async def test_different_and_unsure_verdicts_are_labels_too(serve: Service, stub: StubOllama, redis: Redis) -> None:
    client = await serve()
    await said(client, stub, QUESTION, "It takes 5 days.")
    await said(client, stub, OLD, "It takes 7 days.")
    assert [label["verdict"] for label in await labelled(redis, 1)] == ["different"]
    await said(client, stub, QUICK, "Ask a colleague about it.")
    assert "unsure" in [label["verdict"] for label in await labelled(redis, 2)]


async def test_what_has_no_near_entry_is_not_labelled(serve: Service, stub: StubOllama, redis: Redis) -> None:
    client = await serve()
    for question in (ELSEWHERE, QUESTION):
        await said(client, stub, question, SAME)
    await said(client, stub, OLD, SAME)  # its label comes after those that the others would have had
    assert [float(label["similarity"]) > 0.8 for label in await labelled(redis, 1)] == [True]


async def test_the_nearest_entry_and_the_nearest_that_guards_let_pass_are_labelled(
    serve: Service, stub: StubOllama, redis: Redis
) -> None:
    client = await serve()
    await said(client, stub, "How do I reset my password 5 times?", SAME)
    await said(client, stub, "How do I reset my own old password 7 times now?", ANOTHER)
    before = len(await labelled(redis, 1))
    await said(client, stub, "How do I reset my password 7 times?", SAME)
    nearest, passing = (await labelled(redis, before + 2))[before:]
    assert (nearest["guard"], nearest["verdict"], nearest["similarity"][:3]) == ("numbers", "same", "0.8")
    assert (passing["guard"], passing["verdict"], passing["similarity"][:3]) == ("", "unsure", "0.7")
    assert float(passing["other"]) == float(nearest["similarity"]), "another answer is nearer"


async def test_another_tenant_s_entries_are_never_compared(serve: Service, stub: StubOllama, redis: Redis) -> None:
    client = await serve()
    await said(client, stub, QUESTION, SAME, tenant="acme")
    await said(client, stub, OLD, SAME, tenant="umbrella")
    await said(client, stub, QUICK, SAME, tenant="umbrella")
    assert {label["tenant"] for label in await labelled(redis, 1)} == {"umbrella"}


async def test_a_shared_generation_is_labelled_once_by_its_leader(
    serve: Service, stub: StubOllama, redis: Redis
) -> None:
    one, other = await serve(), await serve()
    await said(one, stub, QUESTION, SAME)
    stub.behaviour(answer=SAME, delay=0.3, path="/api/chat")
    answered = await asyncio.gather(*(ask(client, OLD) for client in (one, other, one, other)))
    assert sorted(found["cache"]["status"] for found in answered) == ["coalesced"] * 3 + ["miss"]
    await said(one, stub, QUICK, SAME)
    await labelled(redis, 2)
    assert len([label for label in await labels(redis) if float(label["similarity"]) > 0.85]) == 1


@pytest.mark.parametrize("reason", ["length", "stop"])
async def test_an_answer_that_was_cut_off_is_not_compared(
    serve: Service, stub: StubOllama, redis: Redis, reason: str
) -> None:
    client = await serve()
    await said(client, stub, QUESTION, SAME)
    stub.behaviour(answer=SAME, done_reason=reason, path="/api/chat")
    await ask(client, OLD)
    stub.behaviour(answer=SAME, path="/api/chat")
    await ask(client, QUICK)
    found = await labelled(redis, 1 + (reason == "stop"))
    assert len(found) == 1 + (reason == "stop")


async def test_entries_that_came_after_the_miss_are_no_candidates(
    serve: Service, stub: StubOllama, redis: Redis
) -> None:
    """They join its group, but no policy could have served them."""
    client, other = await serve(), await serve()
    await said(other, stub, QUICK, SAME)
    stub.behaviour(answer=SAME, delay=0.5, path="/api/chat", times=1)
    asking = asyncio.create_task(ask(client, QUESTION))

    async def generating() -> bool:
        return bool(stub.stats["requests"].get("/api/chat") == 2)

    await wait_until_async(generating)
    early = await said(other, stub, OLD, SAME)
    late = (await asking)["cache"]["entry"]
    await grouped(redis, early, late)
    similarities = sorted(float(label["similarity"]) for label in await labelled(redis, 2))
    assert similarities == pytest.approx([0.743, 0.812], abs=0.002), "both to the first entry"


async def test_observe_labels_what_it_would_have_served(serve: Service, stub: StubOllama, redis: Redis) -> None:
    client = await serve(cache={"policy": "observe"})
    await said(client, stub, QUESTION, SAME)
    for count in (1, 2):  # the second time it finds the question itself, and would have served it
        await said(client, stub, OLD, SAME)
        found = await labelled(redis, count)
    assert [(label["policy"], label["served"], label["verdict"]) for label in found] == [("observe", "0", "same")] * 2


async def test_the_fleet_learns_from_these_labels(serve: Service, stub: StubOllama) -> None:
    """Their versions are those that the worker that learns expects."""
    client = await serve()
    await said(client, stub, QUESTION, SAME)
    await said(client, stub, OLD, SAME)

    async def counted() -> bool:
        return bool((await client.get("/api/semantic-cache/quality")).json()["labels"]["miss"] == 1)

    await wait_until_async(counted)


# -- texts -------------------------------------------------------------------------------------------------------------


async def content(redis: Redis, key: bytes) -> Any:
    """Returns all that a key contains."""
    kind = text(await redis.type(key))
    if kind == "hash":
        return await redis.hgetall(key)
    if kind == "stream":
        return await redis.xrange(key)
    if kind == "zset":
        return await redis.zrange(key, 0, -1)
    return await redis.get(key) if kind == "string" else await redis.lrange(key, 0, -1)


async def holders(redis: Redis, word: bytes) -> set[str]:
    """Returns the kinds of keys that contain a word."""
    found = set()
    async for key in redis.scan_iter():
        if word in repr(await content(redis, key)).encode():
            found.add(":".join(text(key).split(":")[:2]))
    return found


async def test_labels_keep_no_text_unless_pairs_are_kept(serve: Service, stub: StubOllama, redis: Redis) -> None:
    client = await serve()
    await said(client, stub, QUESTION, SAME)
    await said(client, stub, OLD, SAME)
    await labelled(redis, 1)
    assert await holders(redis, b"password") == {"rag:cache"}
    assert not await redis.exists(KEYS.labelled_pairs)
    keeping = await serve(cache={"keep_pairs": True})
    await said(keeping, stub, QUICK, SAME)
    await labelled(redis, 2)
    assert await holders(redis, b"password") == {"rag:cache", "rag:labels"}
    scope = (await labels(redis))[0]["scope"]
    for key in (KEYS.labels, KEYS.labels_of(scope)):
        assert "password" not in repr(await labels(redis, key))
    (pair,) = await labels(redis, KEYS.labelled_pairs)
    assert (pair["asked"], pair["cached"], pair["verdict"]) == (QUICK, QUESTION, "same")
    assert (pair["tenant"], pair["scope"]) == ("default", scope)
    seen = await assert_as_listed(redis, listed())
    for key in (KEYS.labels, KEYS.labels_of(scope), KEYS.labelled_pairs):
        assert any(pattern.fullmatch(key) for pattern in seen), key


# -- answer groups -----------------------------------------------------------------------------------------------------


async def grouped(redis: Redis, *entries: str) -> None:
    """Waits until the entries are one group."""

    async def joined() -> bool:
        return len({await group(redis, entry) for entry in entries}) == 1

    await wait_until_async(joined)


async def test_entries_with_one_answer_join_a_group_and_others_do_not(
    serve: Service, stub: StubOllama, redis: Redis
) -> None:
    client = await serve()
    first = await said(client, stub, QUESTION, SAME)
    second = await said(client, stub, OLD, SAME)
    await grouped(redis, first, second)
    other = await said(client, stub, QUICK, ANOTHER)
    await labelled(redis, 2)
    assert await group(redis, other) != await group(redis, first)
    assert await redis.hget(first, "group") is None, "the oldest gives its name"


async def test_a_later_answer_merges_two_groups(serve: Service, stub: StubOllama, redis: Redis) -> None:
    """Two entries that are not near each other join through a third."""
    client = await serve()
    one = await said(client, stub, "How do I reset the password of my router?", SAME)
    two = await said(client, stub, OLD, SAME)
    assert await group(redis, one) != await group(redis, two)
    three = await said(client, stub, QUESTION, SAME)
    await grouped(redis, one, two, three)
    assert await redis.hget(one, "group") is None, "the oldest gives its name"


async def test_an_answer_joins_a_group_of_which_another_member_says_the_same(
    serve: Service, stub: StubOllama, redis: Redis
) -> None:
    """One comparison that finds no verdict neither splits a group nor leaves its answer without a label."""
    client = await serve()
    first = await said(client, stub, OLD, SAME)
    second = await said(client, stub, QUESTION, SAME)
    await grouped(redis, first, second)
    await redis.hset(second, "answer", "Ask a colleague about it.")
    third = await said(client, stub, "How do I reset my password, please?", SAME, headers={"Cache-Control": "no-cache"})
    await grouped(redis, first, second, third)
    label = (await labelled(redis, 2))[1]
    assert (label["verdict"], label["votes"]) == ("unsure", "1")


async def test_a_replaced_entry_gets_its_group_again(serve: Service, stub: StubOllama, redis: Redis) -> None:
    client = await serve()
    first = await said(client, stub, QUESTION, SAME)
    second = await said(client, stub, OLD, SAME)
    await grouped(redis, first, second)
    created = await redis.hget(second, "created_ms")
    await said(client, stub, OLD, SAME, headers={"Cache-Control": "no-cache"})
    assert await redis.hget(second, "created_ms") != created
    await grouped(redis, first, second)


async def test_an_entry_of_an_older_release_is_a_group_of_one_that_others_join(
    serve: Service, stub: StubOllama, redis: Redis
) -> None:
    """An older worker beside this one writes and reads entries without the field."""
    client = await serve()
    first = await said(client, stub, QUESTION, SAME)
    assert await redis.hget(first, "group") is None
    second = await said(client, stub, OLD, SAME)
    await grouped(redis, first, second)
    await redis.hdel(second, "group")  # the older worker has replaced it
    assert (await ask(client, OLD))["cache"]["kind"] == "exact"
    third = await said(client, stub, QUICK, SAME)
    await grouped(redis, first, second, third)


async def test_two_workers_that_join_at_once_agree(serve: Service, stub: StubOllama, redis: Redis) -> None:
    one, other = await serve(), await serve()
    first = await said(one, stub, QUESTION, SAME)
    stub.behaviour(answer=SAME, path="/api/chat")
    answered = await asyncio.gather(ask(one, OLD), ask(other, QUICK))
    await grouped(redis, first, *(found["cache"]["entry"] for found in answered))


# -- when something fails ----------------------------------------------------------------------------------------------


async def test_a_lost_redis_costs_labels_and_nothing_else(
    serve: Service, stub: StubOllama, redis_url: str, redis_server: EmbeddedRedis
) -> None:
    client = await serve()
    await said(client, stub, QUESTION, SAME)
    stub.behaviour(answer=SAME, delay=0.4, path="/api/chat")
    asking = asyncio.create_task(ask(client, OLD))

    async def generating() -> bool:
        return bool(stub.stats["requests"]["/api/chat"] == 2)

    await wait_until_async(generating)
    redis_server.kill()
    try:
        assert (await asking)["answer"] == SAME

        async def counted() -> bool:
            return await metric(client, 'ragherd_cache_labels_dropped_total{reason="store_unavailable"}') == 1

        await wait_until_async(counted)
    finally:
        redis_server.start()

    async def hits() -> bool:
        return bool((await ask(client, QUESTION))["cache"]["status"] == "hit")

    stub.behaviour(answer=SAME, path="/api/chat")
    await wait_until_async(hits)

    async with Redis.from_url(redis_url) as found:

        async def labels_again() -> bool:
            await ask(client, OLD, headers={"Cache-Control": "no-cache"})
            return bool(await found.xlen(KEYS.labels))

        await wait_until_async(labels_again)


async def test_nothing_runs_after_shutdown(redis: Redis, redis_url: str, stub: StubOllama) -> None:
    before = asyncio.all_tasks()
    async with running_service(make_settings(redis_url, stub.base_url)) as client:
        for question in (QUESTION, OLD, QUICK):
            await said(client, stub, question, SAME)
    left = asyncio.all_tasks() - before
    assert [task for task in left if "labels" in task.get_name() or "label" in repr(task.get_coro())] == []


async def test_a_worker_that_stops_finishes_its_labels(
    redis: Redis, redis_url: str, stub: StubOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare = Comparator.compare

    async def slow(comparator: Comparator, *answers: Any, **more: Any) -> Any:
        await stopping.wait()
        return await compare(comparator, *answers, **more)

    monkeypatch.setattr(Comparator, "compare", slow)
    stopping = asyncio.Event()
    async with running_service(make_settings(redis_url, stub.base_url)) as client:
        for question in (QUESTION, OLD, QUICK):
            await said(client, stub, question, SAME)
        assert await labels(redis) == []
        asyncio.get_running_loop().call_later(0.5, stopping.set)  # after the server has stopped listening
    assert len(await labels(redis)) == 2


async def test_on_a_cluster_labels_are_on_one_shard_and_groups_beside_their_entries(
    cluster_serve: Service, cluster: Cluster, stub: StubOllama
) -> None:
    client, keys = await cluster_serve(), Keys(cluster=True)
    entries: dict[str, list[str]] = {}
    for tenant in ("acme", "umbrella", "initech"):
        entries[tenant] = [await said(client, stub, question, SAME, tenant=tenant) for question in (QUESTION, OLD)]
    owner = cluster.owner(keys.labels)
    async with Redis(port=owner.port) as shard:

        async def written() -> bool:
            return bool(await shard.xlen(keys.labels) == 3)

        await wait_until_async(written)
        for stored, second in entries.values():
            assert await shard.xlen(keys.labels_of(stored.split(":")[3])) == 1
            async with Redis(port=cluster.owner(second).port) as home:
                await grouped(home, stored, second)


async def test_nothing_is_kept_of_a_request_that_forbids_it(serve: Service, stub: StubOllama, redis: Redis) -> None:
    """Neither as a label, nor for feedback: only the answer to the next request."""
    client = await serve(cache={"shadow_rate": 1.0, "keep_pairs": True})
    await said(client, stub, QUESTION, SAME)
    stub.behaviour(answer=ANOTHER, path="/api/chat")
    private = await ask(client, OLD, headers={"Cache-Control": "no-store", "X-Request-ID": "private-1"})
    assert private["cache"]["status"] == "bypass"
    await said(client, stub, QUICK, SAME)  # its label comes after that of the other one
    await labelled(redis, 1)
    feedback = await client.post("/feedback", json={"request_id": "private-1", "verdict": "good"})
    assert feedback.status_code == 404
    for word in (b"old password", ANOTHER.encode(), b"private-1"):
        assert await holders(redis, word) == set()
