"""Warm-ups: answers listed questions in advance, at low priority; jobs are resumed by another worker. And deletions.

Any worker can start and cancel a warm-up. One worker runs it under a lease, and another takes over if that one dies.
The generations queue behind all users and do not count as questions.
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
    ServiceUnavailable,
    StoreUnavailable,
    UpstreamError,
    UpstreamFault,
)
from api.ports.answer_cache import (
    AnswerCache,
    CacheSweep,
    Invalidation,
    Neighbourhood,
    NewAnswer,
    Selection,
    Swept,
    WarmUpCount,
    WarmUpJobs,
    WarmUpProgress,
)
from api.ports.document_store import Documents, Listing
from api.ports.document_work import Deletions, tags_of
from api.ports.inference import Embedder
from api.ports.question import Query, Timings
from api.ports.telemetry import Telemetry
from api.query.cache import Lookup, is_complete
from api.query.cache_key import CacheKey, CacheKeyBuilder, question_digest
from api.query.generate import FreshAnswers
from api.values import NO_TENANT, CacheMatch, Embedding, Priority, known

LISTED: Final = 500
"""Documents of a tag that are listed at a time."""
LONGEST: Final = 10.0
"""Longest retry delay in seconds. A breaker may be closed, or a backend return, earlier than predicted."""
ATTEMPTS: Final = 3
"""Attempts per question, if the question itself may cause the failure."""
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


def retry_delay(error: BaseException, attempts: int) -> float | None:
    """Returns the seconds until the next attempt; None if the question has failed after `attempts` attempts.

    Failures that any question would meet now are retried without limit.
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
        return retry_delay(error.__cause__, attempts)
    hopeless = isinstance(error, UpstreamError) and error.fault in HOPELESS
    if hopeless or not isinstance(error, UpstreamError | EmbeddingUnavailable) or attempts >= ATTEMPTS:
        return None
    return min(LONGEST, 2.0 ** (attempts - 1))


@dataclass(frozen=True, slots=True)
class WarmQuestion:
    """One question of a warm-up. `answer` is None if the language model must generate it. `number` is unique."""

    number: int
    question: str
    tenant: str
    model: str
    top_k: int = 4
    options: dict[str, Any] = field(default_factory=dict)
    answer: str | None = None

    def encoded(self) -> bytes:
        """Returns the question as JSON, which operators can read."""
        return orjson.dumps(self)

    @classmethod
    def decoded(cls, text: bytes) -> WarmQuestion:
        """Decodes the output of `encoded`, ignoring unknown fields. Raises `ValueError` or `TypeError`."""
        return known(cls, orjson.loads(text))

    def query(self) -> Query:
        """Returns the query of a user who asks the question without further options."""
        return Query(self.question, self.tenant, self.model, self.top_k, self.options)


@dataclass(frozen=True, slots=True)
class Warmed:
    """The outcome of one question, as it counts. `error` says why it failed."""

    counts: tuple[WarmUpCount, ...]
    error: str = ""


SKIPPED = Warmed(("skipped",))


class CacheWarmer:
    """Stores the answer to one question in the cache, as if a user had asked it, but behind all users."""

    def __init__(
        self, cache: AnswerCache, embedder: Embedder, keys: CacheKeyBuilder, fresh: FreshAnswers, events: Telemetry
    ) -> None:
        self._cache = cache
        self._keys = keys
        self._embedder = embedder
        self._fresh = fresh
        self._events = events

    async def warm(self, wanted: WarmQuestion) -> Warmed:
        """Stores the answer unless a fresh one is cached. Raises the flow's errors and those of store and embedder."""
        query = wanted.query()
        key = await self._keys.of(query)
        found = await self._cache.find_exact(key.scope, key.digest)
        if _is_there(wanted, found.match):
            return SKIPPED
        embedding = await self._embedding(query)
        if wanted.answer is not None:
            answer = NewAnswer(query.question, wanted.answer, query.model, query.tenant, asked_ms=found.now_ms)
            return await self._stored(key, embedding, answer)
        lookup = Lookup(key, available=True, now_ms=found.now_ms)
        if embedding is not None:
            lookup.vector, lookup.unread = embedding.vector, embedding.unread
        return await self._generated(query, lookup)

    async def _embedding(self, query: Query) -> Embedding | None:
        if not query.has_meaning:
            return None
        (embedding,) = await self._embedder.embed([query.question], tenant=query.tenant)
        return embedding

    async def _stored(self, key: CacheKey, embedding: Embedding | None, answer: NewAnswer) -> Warmed:
        vector = None
        if embedding is not None:
            vector, answer = embedding.vector, replace(answer, unread=embedding.unread)
        if await self._cache.store(key.scope, key.digest, vector, answer) is None:
            return Warmed(("skipped",))  # invalidated meanwhile
        self._events.stored_ahead()
        return Warmed(("stored",))

    async def _generated(self, query: Query, lookup: Lookup) -> Warmed:
        completed = await self._fresh.generate(
            query, lookup, Timings(), Unread(Priority.BATCH), buffered=True, background=True
        )
        if completed.entry is not None:
            self._events.stored_ahead()
            return Warmed(("generated", "stored"))
        if completed.generation is None or not is_complete(completed.generation, query.options):
            return Warmed(("failed",), "the answer is empty, or was cut off")
        return Warmed(("generated", "skipped"))  # invalidated meanwhile, or its documents changed


def _is_there(wanted: WarmQuestion, match: CacheMatch | None) -> bool:
    """Returns whether a fresh answer is cached. A given answer replaces a different one."""
    return (
        match is not None and match.ttl_seconds >= 0 and (wanted.answer is None or wanted.answer == match.answer.answer)
    )


T = TypeVar("T")
LEASE: Final = 5.0
"""Seconds of the job's lease. Another worker takes over a dead worker's job after this time."""
HEARTBEAT_SECONDS: Final = 1.0
"""Seconds between renewals. A job that is cancelled on another worker ends within this time."""
AHEAD: Final = 32
"""Number of questions read from Redis at once."""
SHOWN: Final = 60
"""Characters of a question in an error message."""


class WarmUpRun:
    """One worker's run of one warm-up that it has the lease of, `concurrency` questions at a time."""

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
        """Returns when no questions are left, or when this worker has lost the lease."""
        keeper = asyncio.create_task(self._keep(), name="warm_up_keeper")
        lanes = {asyncio.create_task(self._lane(), name="warm_up_lane") for _ in range(self._concurrency)}
        for task in (keeper, *lanes):
            log_failure(task, Exception)  # raised below, except for tasks that fail while being cancelled
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
        """Renews the lease until the warm-up ends or the lease is lost. While Redis is down nobody can take it."""
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
        """Returns the next question that no lane is processing; None if there is none."""
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
        """Retries a question until it is cached or has failed, and returns the outcome."""
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
                seconds = retry_delay(error, attempts)
                if seconds is None:
                    return self._failed(wanted, error)
            except Exception as error:  # noqa: BLE001 - a bug with one question must not block the others
                return self._failed(wanted, error)
            await asyncio.sleep(seconds)

    def _failed(self, wanted: WarmQuestion, error: Exception) -> Warmed:
        # The message of a bug may quote the question.
        words = f": {error}" if isinstance(error, RagherdError | StoreUnavailable | EmbeddingUnavailable) else ""
        self._events.warm_up_failed(self._job, f"{type(error).__name__}{words}")
        return Warmed(("failed",), f"{wanted.question[:SHOWN]}: {error}")

    async def _insisting(self, call: Callable[[], Awaitable[T]]) -> T:
        """Retries a call until Redis is up."""
        while True:
            try:
                return await call()
            except StoreUnavailable:
                await asyncio.sleep(HEARTBEAT_SECONDS)


LOOK_SECONDS: Final = 1.0
"""Seconds between two searches for unclaimed warm-ups in a small fleet."""


class WarmUps:
    """One worker's part in the fleet's warm-ups, one at a time. `pace` multiplies the time between searches."""

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
        """Starts a warm-up, which runs in the background. Raises `StoreUnavailable`."""
        job = secrets.token_hex(8)
        await self._jobs.create(job, await asyncio.to_thread(_encoded, questions))
        self._news.set()
        progress = await self._jobs.progress(job)
        if progress is None:  # written a moment ago
            raise InternalError
        return progress

    async def progress(self, job: str) -> WarmUpProgress:
        """Returns a warm-up's progress. Raises `NotFound`, `StoreUnavailable`."""
        progress = await self._jobs.progress(job)
        if progress is None:
            raise NotFound(f"There is no warm-up '{job}', or it ended more than an hour ago.")
        return progress

    async def cancel(self, job: str) -> WarmUpProgress:
        """Cancels a warm-up on any worker; stored answers stay. Raises `NotFound`, `StoreUnavailable`."""
        await self._jobs.cancel(job)
        return await self.progress(job)

    async def keep_going(self) -> None:
        """Runs unclaimed warm-ups forever. A background task of the worker."""
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


# -- deletions ---------------------------------------------------------------------------------------------------------


class Invalidator:
    """Deletes cached answers. A generation that began earlier cannot store one again."""

    def __init__(
        self, sweep: CacheSweep, deletions: Deletions, documents: Documents, embedder: Embedder, events: Telemetry
    ) -> None:
        self._sweep = sweep
        self._documents = documents
        self._deletions = deletions
        self._embedder = embedder
        self._events = events

    async def invalidate(self, asked: Invalidation, *, dry_run: bool = False) -> Swept:
        """Deletes the answers, or only counts them with `dry_run`. Raises `StoreUnavailable`, `ServiceUnavailable`."""
        selection = await self._selection(asked)
        if dry_run:
            swept = await self._sweep.sweep(selection, dry_run=True)
        else:
            swept = await self._swept(selection)
            self._events.invalidated(asked, swept)
        if not swept.complete:
            raise ServiceUnavailable(
                "Not all entries were looked at in time; what was deleted stays so. Repeat it.",
                retry_after=1,
                matched=swept.matched,
                deleted=swept.deleted,
            )
        return swept

    async def _swept(self, selection: Selection) -> Swept:
        """Deletes even if the deletion cannot be recorded now: in a cluster that may be on another shard."""
        fault: StoreUnavailable | None = None
        try:
            try:
                await self._deletions.note(tags_of(selection))
            except StoreUnavailable as error:
                fault = error
            swept = await self._sweep.sweep(selection, dry_run=False)
            if fault is not None:
                raise fault
        finally:
            del fault
        return swept

    async def _selection(self, asked: Invalidation) -> Selection:
        if asked.kind == "question" and asked.question is not None:
            near = await self._near(asked.question, asked.similarity, asked.tenant or NO_TENANT)
            digest = question_digest(asked.question)
            return Selection(digest=digest, near=near, tenant=asked.tenant, model=asked.model)
        if asked.tag is not None:
            return Selection(sources=await self._with_tag(asked.tag, asked.tenant or NO_TENANT))
        return Selection(
            entry=asked.entry,
            sources=None if asked.source is None else frozenset((asked.source,)),
            tenant=asked.tenant,
            release=asked.release,
            since_ms=asked.since,
        )

    async def _with_tag(self, tag: str, tenant: str) -> frozenset[str]:
        """The documents of a tenant that have the tag now."""
        found: set[str] = set()
        listing: Listing | None = Listing(tag=tag, limit=LISTED)
        while listing is not None:
            page = await self._documents.page(tenant, listing)
            found.update(document.id for document in page.documents)
            listing = replace(listing, cursor=page.cursor) if page.cursor else None
        return frozenset(found)

    async def _near(self, question: str, similarity: float | None, tenant: str) -> Neighbourhood | None:
        """Returns None to match only the exact question, as for questions that are never compared by meaning."""
        if similarity is None or not Query(question, tenant="", model="").has_meaning:
            return None
        try:
            identity = await self._embedder.identity()
            (embedding,) = await self._embedder.embed([question], tenant=tenant)
            return Neighbourhood(identity, embedding.vector, similarity)
        except EmbeddingUnavailable as error:
            message = "The question cannot be embedded now. Omit `similarity` to delete the exact question."
            raise ServiceUnavailable(message, retry_after=1) from error
