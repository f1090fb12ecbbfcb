"""The semantic cache in the flow when Redis is lost in the middle of a question."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from api.errors import DocumentsChanged, StoreUnavailable
from api.ports.answer_cache import ExactLookup
from api.ports.answer_quality import PolicyName, Versions
from api.ports.question import Query, Timings
from api.ports.telemetry import Telemetry
from api.quality.keeper import QualityView
from api.quality.policies import QualitySettings
from api.query.cache import CacheBudget, CachePolicy, Lookup, SemanticCache
from api.query.cache_key import CacheKey
from api.values import CachedAnswer, CacheMatch, EmbedderIdentity, Generation, GenerationEnd, Usage

PLACE = CacheKey(EmbedderIdentity("e", 4, "aaaaaaaaaa"), "aaaaaaaaaa-scope", "digest")


class LostCache:
    """Replaces `AnswerCache`."""

    def __init__(self) -> None:
        self.stored = 0

    async def find_exact(self, *_: str, **__: Any) -> None:
        raise StoreUnavailable("Redis is down")

    async def store(self, *_: Any, **__: Any) -> None:
        self.stored += 1

    def used(self, *_: Any) -> None:
        raise AssertionError("nothing was found")


class RecordingTelemetry(Telemetry):
    """Records events."""

    def __init__(self) -> None:
        self.failures = 0
        self.stored = 0

    def store_failed(self, _: StoreUnavailable) -> None:
        self.failures += 1

    def store_late(self, _: StoreUnavailable) -> None:
        """Nothing is known yet."""

    def stored_late(self) -> None:
        self.stored += 1


async def test_an_answer_whose_second_lookup_fails_keeps_its_read_time_and_is_not_stored() -> None:
    """Without the time it would be stored even if documents were deleted since."""
    cache, seen = LostCache(), RecordingTelemetry()
    shared = SemanticCache(cache, None, None, seen, CachePolicy(0.9), CacheBudget(1.0))  # type: ignore[arg-type]
    query, lookup = Query("q", "t", "m"), Lookup(PLACE, available=True, now_ms=1234)
    await shared.look_again(query, lookup, Timings())
    assert (lookup.now_ms, lookup.available, seen.failures) == (1234, False, 1)
    generation = Generation("text", GenerationEnd("m", "stop", Usage()), 0.0)
    assert await shared.store(query, lookup, None, (), generation, Timings()) is None
    assert cache.stored == 0


class FullCache(LostCache):
    """Has an answer that another worker has just stored."""

    async def find_exact(self, *_: str, **__: Any) -> ExactLookup:  # type: ignore[override]
        answer = CachedAnswer("entry", "q", "a", "m", (), Usage(), 2_000, 9_000)
        return ExactLookup(CacheMatch(answer, "exact", 1.0, 3_000), 3_000, 0)


@pytest.mark.parametrize(("policy", "served"), [(PolicyName.GUARDED, True), (PolicyName.OBSERVE, False)])
async def test_observe_does_not_serve_what_another_worker_has_just_stored(policy: PolicyName, served: bool) -> None:
    view = QualityView(QualitySettings(policy, 0.9, 0.02, Versions("")))
    none: Any = None
    cache: Any = FullCache()
    shared = SemanticCache(cache, none, none, Telemetry(), CachePolicy(0.9), CacheBudget(1.0), quality=view)
    lookup = Lookup(PLACE, available=True, now_ms=1_000)
    await shared.look_again(Query("q", "t", "m"), lookup, Timings())
    assert (lookup.match is not None) is served
    assert lookup.now_ms == 3_000, "the next flight must be a newer one"


class SlowCache(LostCache):
    """Stores when allowed, or fails with `error`."""

    def __init__(self) -> None:
        super().__init__()
        self.goes_on = asyncio.Event()
        self.error: Exception | None = None

    async def store(self, *_: Any, **__: Any) -> Any:
        await self.goes_on.wait()
        if self.error is not None:
            raise self.error
        self.stored += 1
        return "entry"


LATE: list[tuple[Exception | None, tuple[int, int]]] = [
    (None, (0, 1)),
    (StoreUnavailable("Redis is down"), (1, 0)),
    (DocumentsChanged(1), (0, 0)),
]


@pytest.mark.parametrize(("error", "counted"), LATE, ids=["stored", "failed", "refused"])
async def test_a_store_that_exceeds_its_budget_is_counted_by_its_outcome(
    error: Exception | None, counted: tuple[int, int]
) -> None:
    cache, seen, budget = SlowCache(), RecordingTelemetry(), CacheBudget(0.01)
    cache.error = error
    shared = SemanticCache(cache, None, None, seen, CachePolicy(0.9), budget)  # type: ignore[arg-type]
    query, lookup = Query("q", "t", "m"), Lookup(PLACE, available=True, now_ms=1234)
    generation = Generation("text", GenerationEnd("m", "stop", Usage()), 0.0)
    assert await shared.store(query, lookup, None, (), generation, Timings()) is None
    assert (seen.failures, seen.stored) == (0, 0)
    cache.goes_on.set()
    await budget.aclose()  # the worker awaits this at shutdown
    await asyncio.sleep(0)
    assert (seen.failures, seen.stored) == counted
