"""How long a warm-up waits after a failure before it tries the same question again: a pure decision.

A question that the cache is warmed up with, as it is kept until its turn comes.

Puts the answer to one question into the cache, as if a user had asked it, but behind all users and uncounted.

One worker's part in one warm-up of the cache: question after question, for as long as the warm-up is its own.

Warm-ups of the cache: begun and ended at any worker, done by one, resumed by another when that one dies.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

import orjson

from api.backends.failover import Unread
from api.cancellation import cancel_and_wait, log_failure
from api.errors import (
    BreakerOpen,
    BulkheadFull,
    EmbeddingUnavailable,
    InternalError,
    NotFound,
    RagherdError,
    StoreUnavailable,
    UpstreamError,
    UpstreamFault,
)
from api.ports.answer_cache import AnswerCache, NewAnswer, WarmUpCount, WarmUpJobs, WarmUpProgress
from api.ports.inference import Embedder
from api.ports.question import Query, Timings
from api.ports.telemetry import Telemetry
from api.query.cache import Lookup, is_complete
from api.query.cache_key import CacheKey, CacheKeyBuilder
from api.query.generate import FreshAnswers
from api.values import CacheMatch, Embedding, known

LONGEST: Final = 10.0
"""Seconds. An operator may close a breaker, or a backend be back, before the time that was foretold."""
ATTEMPTS: Final = 3
"""Of one question, where the failure may be its own fault."""
NOT_ITS_FAULT: Final = frozenset(
    {
        UpstreamFault.CONNECT_FAILED,
        UpstreamFault.CONNECT_TIMEOUT,
        UpstreamFault.CONNECTION_STALE,
        UpstreamFault.POOL_TIMEOUT,
        UpstreamFault.BUSY,
    }
)
HOPELESS: Final = frozenset({UpstreamFault.MODEL_NOT_FOUND, UpstreamFault.REQUEST_REJECTED, UpstreamFault.UNAUTHORIZED})


def patience(error: BaseException, attempts: int) -> float | None:
    """Seconds until the next attempt; None: the question has failed. `attempts` have been made so far.

    What any question would meet now is waited out, for as long as it takes.
    """
    if isinstance(error, StoreUnavailable):
        return 1.0
    if isinstance(error, BreakerOpen | BulkheadFull):
        return min(LONGEST, max(0.1, error.retry_after))
    if isinstance(error, UpstreamError) and error.fault in NOT_ITS_FAULT:
        return min(LONGEST, float(error.headers.get("Retry-After", 1)))
    if isinstance(error, EmbeddingUnavailable) and isinstance(
        error.__cause__, BreakerOpen | BulkheadFull | UpstreamError
    ):
        return patience(error.__cause__, attempts)
    hopeless = isinstance(error, UpstreamError) and error.fault in HOPELESS
    if hopeless or not isinstance(error, UpstreamError | EmbeddingUnavailable) or attempts >= ATTEMPTS:
        return None
    return min(LONGEST, 2.0 ** (attempts - 1))


@dataclass(frozen=True, slots=True)
class WarmQuestion:
    """`answer` is None where the language model is to give it. `number` tells it from others of the same warm-up."""

    number: int
    question: str
    tenant: str
    model: str
    top_k: int = 4
    options: dict[str, Any] = field(default_factory=dict)
    answer: str | None = None

    def encoded(self) -> bytes:
        """As JSON, for an operator to read."""
        return orjson.dumps(self)

    @classmethod
    def decoded(cls, text: bytes) -> WarmQuestion:
        """Raises `ValueError` or `TypeError` for what `encoded` did not write. What is said beside is left out."""
        return known(cls, orjson.loads(text))

    def query(self) -> Query:
        """The same as a user's who asks it without more."""
        return Query(self.question, self.tenant, self.model, self.top_k, self.options)


@dataclass(frozen=True, slots=True)
class Warmed:
    """What came of a question, as it counts. `error` says why it failed."""

    counts: tuple[WarmUpCount, ...]
    error: str = ""


SKIPPED = Warmed(("skipped",))


class CacheWarmer:
    """Generations take part in no count of what users ask. `fresh` is told of none of them."""

    def __init__(
        self, cache: AnswerCache, embedder: Embedder, places: CacheKeyBuilder, fresh: FreshAnswers, events: Telemetry
    ) -> None:
        self._cache = cache
        self._places = places
        self._embedder = embedder
        self._fresh = fresh
        self._events = events

    async def warm(self, wanted: WarmQuestion) -> Warmed:
        """Skips what is cached and fresh. Raises what the flow does, and `StoreUnavailable`, `EmbeddingUnavailable`."""
        query = wanted.query()
        place = await self._places.of(query)
        found = await self._cache.find_exact(place.scope, place.digest)
        if _is_there(wanted, found.match):
            return SKIPPED
        embedding = await self._embedding(query)
        if wanted.answer is not None:
            answer = NewAnswer(query.question, wanted.answer, query.model, query.tenant, asked_ms=found.now_ms)
            return await self._stored(place, embedding, answer)
        lookup = Lookup(place, available=True, now_ms=found.now_ms)
        if embedding is not None:
            lookup.vector, lookup.unread = embedding.vector, embedding.unread
        return await self._generated(query, lookup)

    async def _embedding(self, query: Query) -> Embedding | None:
        if not query.has_meaning:
            return None
        (embedding,) = await self._embedder.embed([query.question], tenant=query.tenant)
        return embedding

    async def _stored(self, place: CacheKey, embedding: Embedding | None, answer: NewAnswer) -> Warmed:
        vector = None
        if embedding is not None:
            vector, answer = embedding.vector, replace(answer, unread=embedding.unread)
        if await self._cache.store(place.scope, place.digest, vector, answer) is None:
            return Warmed(("skipped",))  # invalidated meanwhile
        self._events.stored_ahead()
        return Warmed(("stored",))

    async def _generated(self, query: Query, lookup: Lookup) -> Warmed:
        completed = await self._fresh.generate(query, lookup, Timings(), Unread(), buffered=True, background=True)
        if completed.entry is not None:
            self._events.stored_ahead()
            return Warmed(("generated", "stored"))
        if completed.generation is None or not is_complete(completed.generation, query.options):
            return Warmed(("failed",), "the answer is empty, or was cut off")
        return Warmed(("generated", "skipped"))  # invalidated meanwhile, or its documents changed


def _is_there(wanted: WarmQuestion, match: CacheMatch | None) -> bool:
    """Whether it is cached and fresh; an answer that is given replaces another."""
    return (
        match is not None and match.ttl_seconds >= 0 and (wanted.answer is None or wanted.answer == match.answer.answer)
    )


T = TypeVar("T")
LEASE: Final = 5.0
"""Seconds. A worker that dies is succeeded by another after so long."""
HEARTBEAT_SECONDS: Final = 1.0
"""Seconds between renewals; one that was cancelled elsewhere ends within so long."""
AHEAD: Final = 32
"""Questions that are read at once."""
SHOWN: Final = 60
"""Characters of a question in a line of error."""


class WarmUpRun:
    """`concurrency` questions at once. The job has been taken."""

    def __init__(self, job: str, jobs: WarmUpJobs, warmer: CacheWarmer, events: Telemetry, concurrency: int) -> None:
        self._job = job
        self._jobs = jobs
        self._warmer = warmer
        self._events = events
        self._concurrency = concurrency
        self._over = False
        self._ahead: list[bytes] = []
        self._in_hand: set[bytes] = set()
        self._reading = asyncio.Lock()

    async def to_its_end(self) -> None:
        """Returns when nothing is left, or when the warm-up is not this worker's any more."""
        keeper = asyncio.create_task(self._keep(), name="warm_up_keeper")
        lanes = {asyncio.create_task(self._lane(), name="warm_up_lane") for _ in range(self._concurrency)}
        for task in (keeper, *lanes):
            log_failure(task, Exception)  # raised below, but for those that fail as they are cancelled
        pending = set(lanes)
        try:
            while pending and not keeper.done():
                _, pending = await asyncio.wait({*pending, keeper}, return_when=asyncio.FIRST_COMPLETED)
                pending.discard(keeper)
            if not pending and not self._over:
                await self._insisting(lambda: self._jobs.settle(self._job, b"", ()))
        finally:
            self._over = True
            await cancel_and_wait({keeper, *lanes})
        for task in {keeper, *lanes}:
            if not task.cancelled():
                task.result()

    async def _keep(self) -> None:
        """Returns when the warm-up is over, or another worker's. While Redis is down nobody can take it."""
        while not self._over:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            try:
                if not await self._jobs.acquire(self._job, LEASE):
                    return
            except StoreUnavailable:
                continue

    async def _lane(self) -> None:
        while not self._over:
            question = await self._next()
            if question is None:
                return
            warmed = await self._settled(question)
            counts, error = warmed.counts, warmed.error
            going_on = await self._insisting(lambda: self._jobs.settle(self._job, question, counts, error))  # noqa: B023
            self._in_hand.discard(question)
            self._over = self._over or not going_on

    async def _next(self) -> bytes | None:
        """The next question that no lane has in hand; None where there is none."""
        async with self._reading:
            if not self._ahead:
                count = AHEAD + self._concurrency
                left = await self._insisting(lambda: self._jobs.left(self._job, count))
                self._ahead = [question for question in left if question not in self._in_hand]
            if not self._ahead:
                return None
            question = self._ahead.pop(0)
            self._in_hand.add(question)
            return question

    async def _settled(self, text: bytes) -> Warmed:
        """What came of a question, once it is cached or has failed for good."""
        try:
            wanted = WarmQuestion.decoded(text)
        except (ValueError, TypeError):
            return Warmed(("failed",), "a question could not be read")
        attempts = 0
        while True:
            attempts += 1
            try:
                return await self._warmer.warm(wanted)
            except (RagherdError, StoreUnavailable, EmbeddingUnavailable) as error:
                seconds = patience(error, attempts)
                if seconds is None:
                    return self._failed(wanted, error)
            except Exception as error:  # noqa: BLE001 - a bug met by one question must not keep the others for ever
                return self._failed(wanted, error)
            await asyncio.sleep(seconds)

    def _failed(self, wanted: WarmQuestion, error: Exception) -> Warmed:
        self._events.warm_up_failed(self._job, f"{type(error).__name__}: {error}")
        return Warmed(("failed",), f"{wanted.question[:SHOWN]}: {error}")

    async def _insisting(self, call: Callable[[], Awaitable[T]]) -> T:
        """Until Redis takes part."""
        while True:
            try:
                return await call()
            except StoreUnavailable:
                await asyncio.sleep(HEARTBEAT_SECONDS)


LOOK_SECONDS: Final = 1.0
"""How often a worker looks for warm-ups that nobody has, where few others do."""


class WarmUps:
    """One worker's hold on the warm-ups of the fleet. It does one at a time. `pace`: how much less often it looks."""

    def __init__(
        self,
        jobs: WarmUpJobs,
        warmer: CacheWarmer,
        events: Telemetry,
        concurrency: int,
        pace: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self._jobs = jobs
        self._warmer = warmer
        self._events = events
        self._concurrency = concurrency
        self._pace = pace
        self._news = asyncio.Event()

    async def begin(self, questions: Sequence[WarmQuestion]) -> WarmUpProgress:
        """Begins one; it goes on by itself. Raises `StoreUnavailable`."""
        job = secrets.token_hex(8)
        await self._jobs.create(job, await asyncio.to_thread(_encoded, questions))
        self._news.set()
        progress = await self._jobs.progress(job)
        if progress is None:  # written a moment ago
            raise InternalError
        return progress

    async def progress(self, job: str) -> WarmUpProgress:
        """Raises `NotFound`, `StoreUnavailable`."""
        progress = await self._jobs.progress(job)
        if progress is None:
            raise NotFound(f"There is no warm-up '{job}', or it ended more than an hour ago.")
        return progress

    async def cancel(self, job: str) -> WarmUpProgress:
        """Ends one, whichever worker has it; what is cached stays. Raises `NotFound`, `StoreUnavailable`."""
        await self._jobs.cancel(job)
        return await self.progress(job)

    async def keep_going(self) -> None:
        """Does what there is to do, for ever. A task of the worker's."""
        while True:
            with suppress(StoreUnavailable):
                for job in await self._jobs.unfinished():
                    await self._take(job)
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS * self._pace() * random.uniform(0.8, 1.2)):  # noqa: S311 - jitter
                    await self._news.wait()
            self._news.clear()

    async def _take(self, job: str) -> None:
        if not await self._jobs.acquire(job, LEASE):
            return
        self._events.warm_up_taken(job)
        try:
            await WarmUpRun(job, self._jobs, self._warmer, self._events, self._concurrency).to_its_end()
        finally:
            with suppress(StoreUnavailable):
                await self._jobs.acquire(job, 0)


def _encoded(questions: Sequence[WarmQuestion]) -> list[bytes]:
    return [question.encoded() for question in questions]
