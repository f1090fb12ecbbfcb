"""The near cache's rules: what is kept, for how long it may be served, and where there is none."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis

from api.redis_store.client import RedisAddress, is_single
from api.redis_store.connections import BatchingRedis
from api.redis_store.stores.cache import near
from api.redis_store.stores.cache.near import SILENCE, Copies, Heartbeats, NearCache, estimated
from api.values import CachedAnswer, Source, Usage


def answer(text: str = "Paris", expires_ms: int = 10_000) -> CachedAnswer:
    source = Source("d1", "title", 0, text, 0.9)
    return CachedAnswer("rag:cache:s:d", "question", text, "model", (source,), Usage(), 0, expires_ms)


class Up:
    """A Redis that is up."""

    is_up = True
    client: Any = None

    def of(self, key: str) -> Up:
        return self

    def on_recovery(self, action: Callable[[], Awaitable[None]]) -> None:
        self.recovered = action

    def after_recovery(self, action: Callable[[], Awaitable[None]]) -> None:
        raise AssertionError

    async def run(self, operation: str, command: Callable[[BatchingRedis], Awaitable[Any]]) -> Any:
        raise AssertionError("no I/O")


@asynccontextmanager
async def unread(block_seconds: float) -> AsyncIterator[Redis]:
    """Opens nothing."""
    raise AssertionError
    yield Redis()


def test_copies_take_no_more_memory_than_they_may() -> None:
    one = estimated(answer())
    copies = Copies(2 * one)
    for key in ("a", "b"):
        copies.add(key, answer(), copies.changes)
    assert copies.find("a") is not None
    copies.add("c", answer(), copies.changes)
    assert [copies.find(key) is not None for key in "abc"] == [True, False, True]
    copies.add("huge", answer("x" * 3 * one), copies.changes)
    assert (copies.find("huge"), copies.bytes) == (None, 2 * one)
    copies.changed(["a", "unknown"])
    assert (copies.find("a"), copies.bytes) == (None, one)
    copies.changed(None)
    assert (copies.find("c"), copies.bytes) == (None, 0)


def test_an_answer_is_estimated_with_all_its_texts() -> None:
    assert estimated(answer("x" * 10_000)) > 20_000
    assert estimated(answer("é😀" * 1000)) > 2 * 4 * 2000  # four bytes for each character, in answer and source


@pytest.mark.parametrize("keys", [["another"], None])
def test_what_was_read_before_a_message_is_not_kept(keys: list[str] | None) -> None:
    copies = Copies(10**6)
    before = copies.changes
    copies.changed(keys)
    copies.add("a", answer(), before)
    assert copies.find("a") is None


def test_only_the_time_of_sending_counts() -> None:
    beats = Heartbeats()
    assert beats.clock(100.0) is None
    beats.sent(100.0)
    assert beats.clock(100.001) is None
    beats.sent(100.015)
    beats.answered(5_000)
    assert beats.clock(100.03) in (5_030, 5_031)
    assert beats.clock(100.0 + SILENCE + 0.001) is None
    beats.sent(200.0)
    beats.answered(5_015)  # of the second: the process, the network or Redis stood still
    assert beats.clock(200.0) is None
    beats.answered(105_000)
    assert beats.clock(200.0) == 105_001
    beats.sent(200.0)
    beats.lost()
    beats.answered(105_000)  # of a connection that is being closed
    assert beats.clock(200.0) is None


async def test_a_copy_is_served_while_it_is_fresh_and_redis_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    at = 50.0
    monkeypatch.setattr(near, "now", lambda: at)
    redis = Up()
    cache = NearCache(redis, unread, "rag:cache:", 10**6)
    cache.keep("a", answer(), cache.copies.changes)
    assert cache.copies.find("a") is None, "Redis announces nothing yet"
    cache.is_tracking = True
    cache.keep("a", answer(expires_ms=10_000), cache.copies.changes)
    assert cache.find("a") is None
    cache._beats.sent(at)
    cache._beats.answered(9_990)
    found = cache.find("a")
    assert found is not None
    assert (found.kind, found.near, found.is_fresh, cache.hits) == ("exact", True, True, 1)
    redis.is_up = False
    assert cache.find("a") is None
    redis.is_up = True
    at += 0.01
    assert cache.find("a") is None, "its lifetime is over"
    await redis.recovered()
    assert (cache.copies.find("a"), cache.is_tracking) == (None, False)


@pytest.mark.parametrize(
    ("url", "single"),
    [
        ("redis://h:1/0", True),
        ("rediss://h:1", True),
        ("unix:///run/redis.sock", True),
        ("redis+sentinel://h:1/main", False),
        ("rediss+cluster://h:1", False),
    ],
)
def test_there_are_copies_only_with_a_single_server(url: str, single: bool) -> None:
    assert is_single(RedisAddress(url, 1.0, 1.0, 8)) is single
