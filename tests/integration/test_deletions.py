"""Deletions are recorded, so that no backup restores deleted data."""

from __future__ import annotations

import pytest

from api.ports.answer_cache import Neighbourhood, Selection
from api.ports.document_work import ranges_of, tags_about, tags_of
from api.redis_store.connections import BatchingRedis
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.stores.documents.work import LIFETIME_MS, RedisDeletions
from api.values import EmbedderIdentity

KEYS = Keys()
NEAR = Neighbourhood(EmbedderIdentity("m", 4, "a" * 10), b"\0" * 16, 0.9)


async def deletions(redis: BatchingRedis) -> RedisDeletions:
    gate = HealthGatedRedis(redis, 4)
    assert await gate.check()
    return RedisDeletions(gate, KEYS)


@pytest.mark.parametrize(
    ("selection", "mark"),
    [
        (Selection(), "all"),
        (Selection(tenant="acme"), "tenant:acme"),
        (Selection(sources=frozenset(("d1",))), "source:d1"),
        (Selection(digest="q1", tenant="acme"), "question:q1"),
        (Selection(entry="rag:cache:s:q1"), "question:q1"),
        (Selection(digest="q1", near=NEAR, tenant="acme"), "tenant:acme"),
        (Selection(digest="q1", near=NEAR), "all"),
        (Selection(release="9.9.9"), "release:9.9.9"),
    ],
)
def test_what_a_deletion_is_remembered_by_covers_what_it_meant(selection: Selection, mark: str) -> None:
    assert tags_of(selection) == [mark]
    assert mark in tags_about("q1", "acme", ["d1", "d2"], "9.9.9")


def test_a_deletion_by_time_is_remembered_as_a_range() -> None:
    assert tags_of(Selection(since_ms=5)) == ["since:5"]
    assert ranges_of({"since:5": 9, "since:7": 8, "all": 3, "since:soon": 4}) == [(5, 9), (7, 8)]


async def test_of_two_deletions_the_later_holds_and_none_is_of_the_future(redis: BatchingRedis) -> None:
    kept = await deletions(redis)
    await kept.note(["question:a"])
    at = (await kept.noted())["question:a"]
    await kept.merge({"question:a": at - 1000, "question:b": at - 1000, "question:c": at + 10**9})
    noted = await kept.noted()
    assert (noted["question:a"], noted["question:b"]) == (at, at - 1000)
    assert at <= noted["question:c"] < at + 60_000
    assert 0 < await redis.pttl(KEYS.cache_deleted) <= LIFETIME_MS


async def test_what_is_older_than_any_answer_that_is_restored_is_forgotten(redis: BatchingRedis) -> None:
    kept = await deletions(redis)
    await kept.note(["question:a"])
    await redis.zincrby(KEYS.cache_deleted, -LIFETIME_MS - 1, "question:a")
    await kept.note(["question:b"])
    assert list(await kept.noted()) == ["question:b"]


async def test_too_many_stand_for_all_before_them(redis: BatchingRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.redis_store.stores.documents.work.MOST", 3)
    kept = await deletions(redis)
    await kept.note(["question:now"])
    now = (await kept.noted())["question:now"]
    await kept.merge({f"question:{number}": now - 1000 + number for number in range(5)})
    noted = await kept.noted()
    assert noted["all"] == now - 1000 + 2, "what was made until the last one forgotten counts as deleted"
    assert {"question:now", "question:4", "question:3"} <= noted.keys()
    assert len(noted) == 4
