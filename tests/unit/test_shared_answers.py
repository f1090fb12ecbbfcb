"""The cache's part in the flow, where Redis is lost in the middle of a question."""

from __future__ import annotations

from typing import Any

from api.errors import StoreUnavailable
from api.model import EmbedderIdentity, Generation, GenerationEnd, Usage
from api.query.answered import Stages
from api.query.cache_budget import CacheBudget
from api.query.fingerprint import Fingerprint
from api.query.question import Query
from api.query.shared_answers import CachePolicy, Lookup, SharedAnswers

PLACE = Fingerprint(EmbedderIdentity("e", 4, "aaaaaaaaaa"), "aaaaaaaaaa-scope", "digest")


class LostCache:
    """Stands where `AnswerCache` does."""

    def __init__(self) -> None:
        self.stored = 0

    async def find_exact(self, *_: str) -> None:
        raise StoreUnavailable("Redis is down")

    async def store(self, *_: Any, **__: Any) -> None:
        self.stored += 1


class Seen:
    """Stands where the observer does."""

    def __init__(self) -> None:
        self.failures = 0

    def store_failed(self, _: StoreUnavailable) -> None:
        self.failures += 1


async def test_an_answer_whose_second_look_fails_keeps_its_time_and_is_not_stored() -> None:
    """Without the time it would be stored whatever has been deleted since."""
    cache, seen = LostCache(), Seen()
    shared = SharedAnswers(cache, None, None, seen, CachePolicy(0.9), CacheBudget(1.0))  # type: ignore[arg-type]
    query, lookup = Query("q", "t", "m"), Lookup(PLACE, available=True, now_ms=1234)
    await shared.look_again(query, lookup, Stages())
    assert (lookup.now_ms, lookup.available, seen.failures) == (1234, False, 1)
    generation = Generation("text", GenerationEnd("m", "stop", Usage()), 0.0)
    assert await shared.store(query, lookup, None, (), generation, Stages()) is None
    assert cache.stored == 0
