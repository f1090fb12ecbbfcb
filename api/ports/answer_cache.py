"""Protocols of the answer cache: look up, store, invalidate, warm-up jobs, warnings about Redis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from api.ports.document_store import Corpus, DocumentFilter
from api.ports.limits import Charge
from api.values import CachedAnswer, CacheMatch, EmbedderIdentity, Source, Usage, Vector


@dataclass(slots=True, eq=False)
class Claim:
    """The lead of a flight: its hash's key in Redis, and the fence that the hash has while the lead lasts.

    `ended`: storing the answer has ended the lead, because no other worker followed. None while that is unknown: the
    answer is being stored, or the reply was lost.
    """

    key: str
    fence: str
    ended: bool | None = False


@dataclass(frozen=True, slots=True)
class RetrievalSnapshot:
    """The documents as they were when an answer was generated.

    `at_ms`: a time before the search, by the clock of the cache's Redis. `wanted` and `top_k` repeat the search.
    """

    top_k: int
    wanted: DocumentFilter
    corpus: Corpus
    at_ms: int


@dataclass(frozen=True, slots=True)
class NewAnswer:
    """An answer to store. `asked_ms`: when the cache missed, by Redis's clock; 0 if it was not asked.

    `grounds` is None if no documents were searched. `unread`: words of the question that the embedder could not read.
    `is_follow_up`: the question alone does not say what it asks.
    """

    question: str
    answer: str
    model: str
    tenant: str
    sources: tuple[Source, ...] = ()
    usage: Usage = field(default_factory=Usage)
    asked_ms: int = 0
    grounds: RetrievalSnapshot | None = None
    unread: tuple[str, ...] = ()
    is_follow_up: bool = False


@dataclass(frozen=True, slots=True)
class NearestSearch:
    """A search for the `neighbours` entries nearest to a vector that expired at most `stale_ms` ago."""

    embedder: EmbedderIdentity
    vector: Vector
    stale_ms: int
    neighbours: int


class AnswerCache(Protocol):
    """The cached answers of the fleet. Raises `StoreUnavailable` if Redis cannot be used."""

    def entry(self, scope: str, digest: str) -> str: ...

    def find_near(self, entry: str) -> CacheMatch | None: ...

    async def reread(
        self, scope: str, entries: Sequence[str], charge: Charge | None = None
    ) -> tuple[int, list[CachedAnswer | None]]: ...

    async def find_exact(
        self,
        scope: str,
        digest: str,
        tenant: str = "",
        *,
        documents: bool = False,
        search: NearestSearch | None = None,
        charge: Charge | None = None,
    ) -> ExactLookup: ...

    async def find_similar(
        self,
        embedder: EmbedderIdentity,
        scope: str,
        vector: Vector,
        now_ms: int,
        *,
        stale_ms: int = 0,
        neighbours: int = 5,
    ) -> Sequence[CacheMatch]: ...

    async def store(
        self, scope: str, digest: str, vector: Vector | None, answer: NewAnswer, *, claim: Claim | None = None
    ) -> CachedAnswer | None: ...

    async def join(self, answers: Sequence[CachedAnswer]) -> str: ...

    def used(self, match: CacheMatch) -> None: ...


@dataclass(frozen=True, slots=True)
class ExactLookup:
    """The result of the exact tier. `match` may be past its lifetime (`ttl_seconds` < 0).

    `invalidated_ms`: when answers to this question, of this tenant, or all were last deleted; 0 if never. `corpus`: the
    tenant's documents at `now_ms`, if they were asked for and there is no answer; None if the cache cannot tell.
    `similar`: what the search that was sent along has found; None without one, or if it must be made separately.
    """

    match: CacheMatch | None
    now_ms: int
    invalidated_ms: int = 0
    corpus: Corpus | None = None
    similar: Sequence[CacheMatch] | None = None


class CondensedQuestions(Protocol):
    """Follow-up questions, rewritten to stand alone. Every method raises `StoreUnavailable`."""

    async def find(self, place: str) -> str | None: ...

    async def remember(self, place: str, question: str) -> None: ...


@dataclass(frozen=True, slots=True)
class CachedQuestion:
    """A cached answer that new documents may change, and how it was made."""

    entry: str
    question: str
    tenant: str
    vector: Vector | None
    top_k: int
    wanted: DocumentFilter = field(default_factory=DocumentFilter)


class InvalidationTags(Protocol):
    """Finds and expires cached answers that a change of documents affects. Raises `StoreUnavailable`."""

    async def near(
        self, embedder: EmbedderIdentity, tenant: str, vectors: Sequence[Vector], floor: float, limit: int
    ) -> tuple[Sequence[CachedQuestion], bool]: ...

    async def incomparable(self, embedder: EmbedderIdentity, tenant: str, limit: int) -> tuple[Sequence[str], bool]: ...

    async def expire(self, entries: Sequence[str]) -> int: ...

    async def expire_all(self, tenant: str) -> int: ...


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """Questions similar to one: `similarity` is the least cosine, `vector` the question's by `embedder`."""

    embedder: EmbedderIdentity
    vector: Vector
    similarity: float


@dataclass(frozen=True, slots=True)
class Selection:
    """Selects entries that match everything given; all if nothing is given.

    `digest`: of the exact question; with `near`, similar questions match too. `sources`: documents of which the answer
    cites one. `release`: of Ragherd, that stored the answer. `since_ms`: by Redis's clock, inclusive.
    """

    entry: str | None = None
    digest: str | None = None
    near: Neighbourhood | None = None
    sources: frozenset[str] | None = None
    tenant: str | None = None
    model: str | None = None
    release: str | None = None
    since_ms: int | None = None


InvalidationKind = Literal["question", "entry", "source", "tag", "release", "since", "tenant", "all"]


@dataclass(frozen=True, slots=True)
class Invalidation:
    """The answers to delete. `kind` says which field selects them.

    With `question`, `tenant` and `model` narrow the selection; `similarity` widens it to all questions that similar.
    `tag` is one of the tenant's documents. `since` is in milliseconds by Redis's clock.
    """

    kind: InvalidationKind
    question: str | None = None
    similarity: float | None = None
    entry: str | None = None
    source: str | None = None
    tag: str | None = None
    tenant: str | None = None
    model: str | None = None
    release: str | None = None
    since: int | None = None


@dataclass(frozen=True, slots=True)
class Swept:
    """The numbers of entries that matched and that were deleted. `complete` is false after a timeout."""

    matched: int
    deleted: int
    complete: bool = True


class CacheSweep(Protocol):
    """Finds and deletes entries of the whole fleet. Every method raises `StoreUnavailable`."""

    async def sweep(self, selection: Selection, *, dry_run: bool) -> Swept: ...

    async def outdate(self, tenant: str) -> None: ...


ServedStatus = Literal["exact", "semantic", "stale", "miss", "coalesced", "bypass"]
FeedbackVerdict = Literal["good", "bad"]


@dataclass(frozen=True, slots=True)
class ServedAnswer:
    """An answer that went out, as feedback finds it.

    `scope` and `asked` are the asked question's cache key, empty without a cache. `entry` is the digest of the entry
    that answered, or would be stored; `answer` is a digest of its text. `similarity` is 0 for fresh answers. `variant`
    and `group` are those of the experiment; the variant is empty without one.
    """

    status: ServedStatus
    similarity: float
    scope: str
    asked: str
    entry: str
    answer: str
    tenant: str
    variant: str = ""
    group: int = 0


@dataclass(frozen=True, slots=True)
class Vote:
    """A verdict on an answer. `voter` identifies the key that votes, `request_id` the answer."""

    request_id: str
    verdict: FeedbackVerdict
    voter: str
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Voted:
    """The result of a vote. `former`: what the key voted before. `moved`: entries quarantined or put back."""

    served: ServedAnswer
    former: FeedbackVerdict | None = None
    moved: int = 0


class Feedback(Protocol):
    """Votes on answers. Raises `StoreUnavailable`."""

    async def vote(self, tenant: str, vote: Vote, *, of_any_tenant: bool) -> Voted | None:
        """Records a vote. None if the answer is unknown, too old, or another tenant's."""


WarmUpStatus = Literal["running", "done", "failed", "cancelled"]


WarmUpCount = Literal["generated", "stored", "skipped", "failed"]


@dataclass(frozen=True, slots=True)
class WarmUpProgress:
    """The progress of a warm-up. `done` counts stored, skipped and failed questions; `by` is the worker that runs it.

    `errors`: the first few. Times are milliseconds of Redis's clock; `ended_ms` is None while it runs.
    """

    job: str
    status: WarmUpStatus
    total: int
    done: int
    generated: int
    stored: int
    skipped: int
    failed: int
    errors: tuple[str, ...]
    started_ms: int
    ended_ms: int | None
    by: str


class WarmUpJobs(Protocol):
    """The fleet's warm-ups of the cache. Every method raises `StoreUnavailable`.

    Questions are those given to `create`; within a job each is unique.
    """

    async def create(self, job: str, questions: Sequence[bytes]) -> None: ...

    async def progress(self, job: str) -> WarmUpProgress | None: ...

    async def cancel(self, job: str) -> None: ...

    async def unfinished(self) -> list[str]: ...

    async def acquire(self, job: str, seconds: float) -> bool: ...

    async def left(self, job: str, count: int) -> list[bytes]: ...

    async def settle(self, job: str, question: bytes, counts: Sequence[WarmUpCount], error: str = "") -> bool: ...


Store = Literal["main", "breaker"]
"""REDIS_URL and, if set, BREAKER_REDIS_URL."""


@dataclass(frozen=True, slots=True)
class StoreWarning:
    """`name`: as listed in docs/redis.md. `advice`: what it means and what to do."""

    store: Store
    name: str
    advice: str


@dataclass(frozen=True, slots=True)
class StoreMemory:
    """`used`: bytes of all servers. `share`: the used share of `maxmemory` on the fullest server, 0 without a limit.

    `evicted`: keys that Redis evicted since it started, because its memory was full.
    """

    store: Store
    used: int
    share: float
    evicted: int
