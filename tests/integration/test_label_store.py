"""The label store on a real Redis: what is written is read, streams stay bounded, and groups join atomically."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import redis as redis_sync
from redis.asyncio import Redis

from api.ports.answer_quality import Evidence, Label, LabelledPair, LabelStore, PolicyName, Verdict, Versions
from api.redis_store.connections import BatchingRedis
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.stores import label_store as module
from api.redis_store.stores.audit import KEPT
from api.redis_store.stores.cache.answers import RedisAnswerCache, own_group
from api.redis_store.stores.cache.semantic_index import SemanticIndexes
from api.redis_store.stores.fleet import CacheCounters
from api.redis_store.stores.label_store import LIFETIME_MS, RETRACTED_MS, SCOPE_LIFETIME_MS, RedisLabels
from api.values import CachedAnswer, Usage
from scripts.chaos_tools import soak_start
from tests.support.replies import text, texts

KEYS = Keys()
SCOPE, OTHER = (f"{'a' * 10}-{digit * 24}" for digit in "12")
LABEL = Label(
    Evidence(0.875, 0.75, 2.5, 0.25, "numbers", -1.5),
    Verdict.DIFFERENT,
    "shadow",
    served=True,
    kind="semantic",
    policy=PolicyName.GUARDED,
    versions=Versions("embedder", "verifier", "comparator-1"),
    probability=0.25,
)


def label(similarity: float = 0.8, verdict: Verdict = Verdict.SAME) -> Label:
    evidence = Evidence(similarity)
    return Label(evidence, verdict, "miss", False, "semantic", PolicyName.OBSERVE, Versions("embedder"))


@pytest.fixture
async def gate(redis: BatchingRedis) -> HealthGatedRedis:
    gate = HealthGatedRedis(redis, 8)
    assert await gate.check()
    return gate


@pytest.fixture
def store(gate: HealthGatedRedis) -> RedisLabels:
    return RedisLabels(gate, KEYS)


async def test_a_label_comes_back_as_it_was_written_with_redis_s_time(store: LabelStore, redis: Redis) -> None:
    seconds, _ = await redis.time()
    await store.append(SCOPE, "acme", LABEL)
    (found,) = await store.of_scope(SCOPE, 10)
    assert abs(found.at_ms / 1000 - seconds) < 5
    (pooled,), _ = await store.pooled("", 10)
    assert (pooled.scope, pooled.tenant) == (SCOPE, "acme")
    for one in (found, pooled.label):
        same = Label(one.evidence, one.verdict, one.source, one.served, one.kind, one.policy, one.versions)
        assert (same, one.probability) == (
            Label(LABEL.evidence, LABEL.verdict, LABEL.source, LABEL.served, LABEL.kind, LABEL.policy, LABEL.versions),
            0.25,
        )


async def test_labels_share_what_is_equal(store: LabelStore) -> None:
    """Each worker holds many thousands of them."""
    for _ in range(2):
        await store.append(SCOPE, "acme", LABEL)
    (one, other), _ = await store.pooled("", 10)
    assert one.scope is other.scope
    assert one.label.versions is other.label.versions


@pytest.mark.parametrize("votes", [None, -2, 0, 1])
async def test_a_label_keeps_its_votes(store: LabelStore, votes: int | None) -> None:
    await store.append(SCOPE, "acme", replace(LABEL, votes=votes))
    assert [one.votes for one in await store.of_scope(SCOPE, 10)] == [votes]


async def test_a_label_of_an_older_release_has_no_votes(store: LabelStore, redis: Redis) -> None:
    await store.append(SCOPE, "acme", LABEL)
    found: Any = await redis.xrange(KEYS.labels_of(SCOPE))
    fields = found[0][1]
    del fields[b"votes"]
    await redis.xadd(KEYS.labels_of(SCOPE), fields)
    assert [one.votes for one in await store.of_scope(SCOPE, 10)] == [None, None]


async def test_a_scope_reads_its_own_labels_newest_first(store: LabelStore) -> None:
    for number in range(3):
        await store.append(SCOPE, "t", label(0.7 + number / 10))
    await store.append(OTHER, "t", label(0.99))
    assert [one.evidence.similarity for one in await store.of_scope(SCOPE, 2)] == pytest.approx([0.9, 0.8])


async def test_the_pool_is_read_in_pieces_that_neither_repeat_nor_skip(store: LabelStore) -> None:
    for number in range(5):
        await store.append((SCOPE, OTHER)[number % 2], "t", label(number / 10))
    seen, after = [], ""
    while True:
        labels, after = await store.pooled(after, 2)
        if not labels:
            break
        seen += [(one.scope, one.label.evidence.similarity) for one in labels]
    assert seen == [((SCOPE, OTHER)[number % 2], number / 10) for number in range(5)]
    await store.append(SCOPE, "t", label(0.9))
    assert [one.label.evidence.similarity for one in (await store.pooled(after, 2))[0]] == [0.9]


async def test_streams_are_bounded_and_live_on_with_each_write(
    store: LabelStore, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, most in (("OF_SCOPE", 3), ("POOLED", 5), ("PAIRS", 2)):
        monkeypatch.setattr(module, name, most)
    for number in range(8):
        pair = LabelledPair(f"asked {number}", "cached", Verdict.SAME, SCOPE)
        await store.append(SCOPE, "t", label(number / 10), pair)
    bounds = (
        (KEYS.labels_of(SCOPE), 3, SCOPE_LIFETIME_MS),
        (KEYS.labels, 5, LIFETIME_MS),
        (KEYS.labelled_pairs, 2, LIFETIME_MS),
    )
    for key, most, lifetime in bounds:
        assert await redis.xlen(key) == most
        assert lifetime - 60_000 < await redis.pttl(key) <= lifetime
        await redis.pexpire(key, 1000)
    await store.append(SCOPE, "t", label())
    assert await redis.pttl(KEYS.labels) > 1000
    assert await redis.pttl(KEYS.labels_of(SCOPE)) > 1000


async def test_only_so_many_scopes_have_labels_those_with_the_newest(
    store: LabelStore, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SCOPES", 3)
    scopes = [f"{'a' * 10}-{number:024}" for number in range(6)]
    seconds, _ = await redis.time()
    for number, scope in enumerate((*scopes[:3], scopes[0], *scopes[3:])):
        await store.append(scope, "t", label())
        await redis.zadd(KEYS.labelled_scopes, {KEYS.labels_of(scope): seconds * 1000 - 1000 + number})
    kept = [scope for scope in scopes if await redis.exists(KEYS.labels_of(scope))]
    assert kept == scopes[3:]
    assert sorted(texts(await redis.zrange(KEYS.labelled_scopes, 0, -1))) == [KEYS.labels_of(scope) for scope in kept]
    assert 0 < await redis.pttl(KEYS.labelled_scopes) <= SCOPE_LIFETIME_MS
    assert len((await store.pooled("", 10))[0]) == 7, "the pool keeps the labels of all scopes"
    await redis.zadd(KEYS.labelled_scopes, {KEYS.labels_of(scopes[3]): 1})
    await store.append(scopes[5], "t", label())
    assert await redis.zcard(KEYS.labelled_scopes) == 2, "what has expired leaves the list"


async def test_a_retracted_label_is_gone_and_noted(
    gate: HealthGatedRedis, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRACTED", 2)
    store = RedisLabels(gate, KEYS)
    names = [await store.add(SCOPE, "t", label(number / 10)) for number in range(4)]
    ids = [one.id for one in (await store.pooled("", 10))[0]]
    await store.retract(SCOPE, names[1])
    assert [one.id for one in (await store.pooled("", 10))[0]] == [ids[0], *ids[2:]]
    assert len(await store.of_scope(SCOPE, 10)) == 3
    found, after = await store.retracted("")
    assert found == [ids[1]]
    assert await store.retracted(after) == ([], after)
    for name in names[2:]:
        await store.retract(SCOPE, name)
    assert (await store.retracted(after))[0] == ids[2:]
    assert await redis.xlen(KEYS.retracted_labels) == 2
    assert 0 < await redis.pttl(KEYS.retracted_labels) <= RETRACTED_MS


async def test_a_pair_is_kept_only_if_given_and_the_other_streams_contain_no_text(
    store: LabelStore, redis: Redis
) -> None:
    await store.append(SCOPE, "acme", label())
    assert not await redis.exists(KEYS.labelled_pairs)
    pair = LabelledPair("How do I pay?", "How can I pay?", Verdict.SAME, SCOPE)
    await store.append(SCOPE, "acme", label(), pair)
    assert list(await store.pairs(10)) == [pair]
    for key in (KEYS.labels, KEYS.labels_of(SCOPE)):
        entries: Any = await redis.xrange(key)
        assert len(entries) == 2
        assert b"pay" not in b" ".join(value for _, found in entries for value in found.values())


async def test_a_label_of_a_later_release_is_skipped(store: LabelStore, redis: Redis) -> None:
    await store.append(SCOPE, "t", label())
    await redis.xadd(KEYS.labels, {"scope": SCOPE, "tenant": "t", "verdict": "perhaps"})
    await redis.xadd(KEYS.labels_of(SCOPE), {"new": "1"})
    labels, after = await store.pooled("", 10)
    assert len(labels) == len(await store.of_scope(SCOPE, 10)) == 1
    assert await store.pooled(after, 10) == ([], after)


async def test_the_fleet_admits_only_so_many_shadow_calls_a_minute(gate: HealthGatedRedis, redis: Redis) -> None:
    workers = [RedisLabels(gate, KEYS) for _ in range(4)]
    admitted = await asyncio.gather(*(one.admit_shadow(5) for one in workers * 5))
    assert sum(admitted) == 5
    assert 0 < await redis.pttl(KEYS.shadow_calls) <= 60_000
    await redis.delete(KEYS.shadow_calls)
    assert await workers[0].admit_shadow(5)
    assert not await workers[0].admit_shadow(0)


# -- answer groups -----------------------------------------------------------------------------------------------------


@pytest.fixture
async def answers(gate: HealthGatedRedis) -> RedisAnswerCache:
    counters = CacheCounters(gate, KEYS, "w")
    return RedisAnswerCache(gate, KEYS, SemanticIndexes(gate, KEYS), counters, ttl_ms=1000, stale_ms=0, max_size=10)


async def entry(redis: Redis, number: int, created_ms: int, group: str = "") -> CachedAnswer:
    key = KEYS.cache_entry(SCOPE, f"{number:032x}")
    await redis.hset(key, mapping={"created_ms": created_ms, "answer": "a"})
    if group:
        await redis.hset(key, "group", group)
    return CachedAnswer(key, "q", "a", "m", (), Usage(), created_ms, 0, group=group or own_group(key, created_ms))


async def groups(redis: Redis, *answers: CachedAnswer) -> list[str | None]:
    found = [await redis.hget(answer.entry, "group") for answer in answers]
    return [None if group is None else text(group) for group in found]


async def test_joined_entries_take_the_oldest_name_which_only_others_write_down(
    answers: RedisAnswerCache, redis: Redis
) -> None:
    old, new = await entry(redis, 1, 1_700_000_000_001), await entry(redis, 2, 1_700_000_000_002)
    assert await answers.join([new, old]) == old.group
    assert await groups(redis, old, new) == [None, old.group], "a group of one needs no field"


async def test_two_groups_merge_under_the_older_name(answers: RedisAnswerCache, redis: Redis) -> None:
    one = await entry(redis, 1, 1_700_000_000_005, "1600000000000-00000000")
    two = await entry(redis, 2, 1_700_000_000_001, "1650000000000-00000000")
    new = await entry(redis, 3, 1_700_000_000_009)
    assert await answers.join([new, two, one]) == one.group
    assert await groups(redis, one, two, new) == [one.group] * 3


async def test_an_entry_that_was_replaced_or_deleted_meanwhile_stays_out(
    answers: RedisAnswerCache, redis: Redis
) -> None:
    old, gone = await entry(redis, 1, 1_700_000_000_001), await entry(redis, 2, 1_700_000_000_002)
    new = await entry(redis, 3, 1_700_000_000_003)
    await redis.hset(old.entry, "created_ms", 1_700_000_000_004)
    await redis.delete(gone.entry)
    assert await answers.join([new, old, gone]) == new.group
    assert await groups(redis, old, new) == [None, None]
    assert not await redis.exists(gone.entry)
    assert await answers.join([gone]) == ""


async def test_joins_in_any_order_end_in_one_group(answers: RedisAnswerCache, redis: Redis) -> None:
    made = [await entry(redis, number, 1_700_000_000_000 + number) for number in range(6)]
    pairs = list(pairwise(made))
    for _ in range(len(made)):
        await asyncio.gather(*(answers.join(pair) for pair in reversed(pairs)))
    assert await groups(redis, *made) == [None] + [made[0].group] * 5


async def test_a_soak_begins_with_what_fills_up_in_hours(store: LabelStore, redis: Redis, redis_url: str) -> None:
    with redis_sync.Redis.from_url(redis_url) as client:
        soak_start.fill(client)
    assert await redis.xlen(KEYS.labels) == module.POOLED
    assert await redis.pttl(KEYS.labels) > 0
    assert await redis.xlen(KEYS.audit) == KEPT
    newest: Any = await redis.xrevrange(KEYS.audit, count=1)
    ((_, last),) = newest
    assert (int(last[b"number"]), len(last[b"hash"])) == (KEPT, 64)
    minutes = [key async for key in redis.scan_iter(f"{KEYS.history_minute('')}*")]
    assert len(minutes) == 59, "the present one follows"
    lifetimes = [await redis.pttl(key) for key in minutes]
    assert 0 < min(lifetimes) < max(lifetimes) < 3_600_000
    (first,) = (await store.pooled("", 1))[0]
    assert (first.tenant, first.label.versions) == ("birch", Versions("earlier", comparator="earlier"))
    await store.append(SCOPE, "acme", LABEL)
    assert await redis.xlen(KEYS.labels) == module.POOLED


async def test_the_labels_of_a_soak_are_all_replaced(store: LabelStore, redis: Redis, redis_url: str) -> None:
    await store.append(SCOPE, "acme", LABEL)
    with redis_sync.Redis.from_url(redis_url) as client:
        soak_start.renew_labels(client, seconds=0)
    assert await redis.xlen(KEYS.labels) == module.POOLED
    ((first,), _) = await store.pooled("", 1)
    assert first.tenant == "birch"
