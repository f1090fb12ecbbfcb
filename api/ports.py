"""What the query flow needs from the outside, as protocols. Adapters implement them; only `wiring` knows which."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol

from api.model import (
    BackendHealth,
    CachedAnswer,
    CacheMatch,
    EmbedderIdentity,
    EmbeddingRequest,
    Embeddings,
    FlightKey,
    GenerationEnd,
    GenerationRequest,
    Landed,
    Restart,
    Source,
    StoredElsewhere,
    Token,
    Usage,
    Vector,
)


class LanguageModel(Protocol):
    """A language model that answers as a stream."""

    def stream(self, request: GenerationRequest) -> AbstractAsyncContextManager[AsyncIterator[Token | GenerationEnd]]:
        """Tokens, then exactly one `GenerationEnd`.

        Leaving the context early ends the generation. Raises `UpstreamError`, also in mid-stream; every deadline
        is the adapter's.
        """


class Embedder(Protocol):
    """Turns text into unit vectors."""

    async def identity(self) -> EmbedderIdentity:
        """Who embeds. Raises `EmbeddingUnavailable` while that is not known yet."""

    async def embed(self, texts: Sequence[str]) -> list[Vector]:
        """One vector a text, in order. Raises `EmbeddingUnavailable` past its deadline or on a fault."""


class EmbeddingModel(Protocol):
    """Whatever model embeds texts for a client, its vectors untouched."""

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """One vector a text, in order. Raises `UpstreamError`."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The lead of a flight: the key of its hash in Redis, and the fence that the hash has while the lead lasts."""

    key: str
    fence: str


@dataclass(frozen=True, slots=True)
class NewAnswer:
    """An answer to be stored. `asked_ms`: when the cache was asked in vain, by Redis's clock; 0 where it was not."""

    question: str
    answer: str
    model: str
    tenant: str
    sources: tuple[Source, ...] = ()
    usage: Usage = field(default_factory=Usage)
    asked_ms: int = 0


class AnswerCache(Protocol):
    """The answers of the whole fleet. Every method raises `StoreUnavailable` when Redis can not be used."""

    async def find_exact(self, scope: str, digest: str) -> ExactLookup:
        """The entry of exactly this question, fresh or not, and Redis's clock: one round trip."""

    async def find_similar(
        self, embedder: EmbedderIdentity, scope: str, vector: Vector, now_ms: int, *, stale_ms: int = 0
    ) -> Sequence[CacheMatch]:
        """Up to 5 nearest entries of the scope, whatever their similarity, nearest first: one round trip.

        `stale_ms`: how long after its lifetime an entry is still found.
        """

    async def store(
        self, scope: str, digest: str, vector: Vector | None, answer: NewAnswer, *, claim: Claim | None = None
    ) -> CachedAnswer | None:
        """Stores an answer under its absolute lifetime, replacing one of the same digest.

        None where it was invalidated since it was asked for, or where `claim` is another worker's by now.
        """

    def used(self, match: CacheMatch) -> None:
        """Notes that an entry was served; no I/O."""


@dataclass(frozen=True, slots=True)
class ExactLookup:
    """What the exact tier found. `match` may be past its lifetime (`ttl_seconds` < 0)."""

    match: CacheMatch | None
    now_ms: int


Lead = Callable[[Claim | None], AbstractAsyncContextManager[AsyncIterator[Token | Restart | Landed]]]
"""Generates an answer, and stores it under the claim where there is one."""


class Seat(Protocol):
    """A caller's place in a flight: gives `Token`s and `Landed`, or `StoredElsewhere`.

    A cancelled `anext` loses nothing. Raises what ended the answer, wherever it was generated.
    """

    @property
    def led(self) -> bool:
        """Whether it was generated because this caller asked; known with the first event."""

    async def __anext__(self) -> Token | Landed | StoredElsewhere: ...


class Flights(Protocol):
    """Single flight: equal questions in flight are generated once over the fleet; without Redis, once a worker."""

    def join(
        self, key: FlightKey, lead: Lead, *, asked_ms: int, whole: bool, fleet: bool = True
    ) -> AbstractAsyncContextManager[Seat]:
        """A seat. `lead` is called where this worker has to generate; who leaves last ends that.

        `asked_ms`: when the cache was asked in vain, by Redis's clock. `whole`: this caller wants no tokens.
        `fleet`: other workers are asked, not only this one's callers.
        """

    def sole(self, key: FlightKey) -> AbstractAsyncContextManager[Claim | None]:
        """The lead of work on `key` that nobody waits for; None where another worker has it, or Redis is down."""


class CondensedQuestions(Protocol):
    """Follow-up questions as they were rewritten to stand alone. Raises `StoreUnavailable`."""

    async def find(self, place: str) -> str | None:
        """The stand-alone question, where it is known."""

    async def remember(self, place: str, question: str) -> None:
        """Keeps it for as long as an answer is fresh."""


class ModelDigests(Protocol):
    """Which weights the language models have now, as far as this worker knows."""

    def digest(self, model: str) -> str:
        """The same while the weights are; empty while nothing is known of the model. No I/O."""


class Attempt(Protocol):
    """One admitted call through the breaker; the caller reports how it went exactly once."""

    async def succeeded(self, seconds: float) -> None:
        """The call worked; `seconds` is the time to its first token less the time the model took to load."""

    async def failed(self, seconds: float) -> None:
        """The call failed in a way that speaks against Ollama."""

    async def ignored(self) -> None:
        """The call ended in a way that says nothing about Ollama: the permit goes back."""


class Breaker(Protocol):
    """The circuit breaker of the fleet, as a caller sees it."""

    def attempt(self) -> AbstractAsyncContextManager[Attempt]:
        """One call. Raises `BreakerOpen` when none is admitted; without a report the call counts as ignored.

        No I/O while the breaker is closed, or open and its wait has not passed.
        """

    def check(self) -> None:
        """Raises `BreakerOpen` where `attempt` is sure to: so that nobody waits for a permit in vain. No I/O."""

    @property
    def rejects(self) -> bool:
        """Whether a call would be rejected now, as far as this worker knows; no I/O."""


class Retries(Protocol):
    """The budget of retries."""

    def spend(self) -> bool:
        """Whether one more retry may be made now; if so, it is charged."""


class Duty(Protocol):
    """What one worker of the fleet does at a time, for all. Without Redis each worker does it for itself."""

    async def hold(self, seconds: float) -> bool:
        """Whether it is this worker's, now taken or renewed, for so many seconds."""

    async def leave(self) -> None:
        """Leaves it to the others at once."""


class HealthBoard(Protocol):
    """Where the fleet keeps what is known of its backends. Raises `StoreUnavailable`."""

    async def publish(self, found: Mapping[str, BackendHealth]) -> None:
        """Tells the fleet, by the backends' names."""

    async def read(self) -> Mapping[str, BackendHealth]:
        """What was last published and has not expired, without digests."""

    async def publish_digests(self, name: str, digests: Mapping[str, str]) -> None:
        """Tells the fleet which weights the models of a backend have; `publish` does so too, where it answers."""

    async def digests(self, name: str) -> Mapping[str, str]:
        """Which weights the models of a backend have, or had when it last answered; empty where that is not known."""


class Bulkhead(Protocol):
    """The bound on calls to Ollama at once, over the fleet."""

    def permit(self, tenant: str, *, background: bool = False) -> AbstractAsyncContextManager[None]:
        """Holds a permit while the block runs; waits for one, in turn with other tenants, if it must.

        `background` work waits behind all users. Raises `BulkheadFull` when too many wait, or for too long.
        """


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """Questions that are near one: `similarity` is the least cosine, `vector` the question's by `embedder`."""

    embedder: EmbedderIdentity
    vector: Vector
    similarity: float


@dataclass(frozen=True, slots=True)
class Selection:
    """Which entries are meant: those for which everything given holds. Where nothing is given, all.

    `digest` is a question's, to the letter; with `near`, those near it are meant too. `source` is a document that the
    answer's sources cite.
    """

    entry: str | None = None
    digest: str | None = None
    near: Neighbourhood | None = None
    source: str | None = None
    tenant: str | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Swept:
    """Entries that were meant, and those of them that were deleted. `complete` is false where time ran out."""

    matched: int
    deleted: int
    complete: bool = True


class CacheSweep(Protocol):
    """Finds and deletes entries of the whole fleet. Raises `StoreUnavailable`."""

    async def sweep(self, selection: Selection, *, dry_run: bool) -> Swept:
        """Deletes what is meant. What was asked before and is answered later is not stored either."""


WarmUpStatus = Literal["running", "done", "failed", "cancelled"]
WarmUpCount = Literal["generated", "stored", "skipped", "failed"]


@dataclass(frozen=True, slots=True)
class WarmUpProgress:
    """How far a warm-up of the cache is. `done` is what was stored, skipped and failed; `by` the worker that has it.

    `errors` are the first few. Times are milliseconds of Redis's clock; `ended_ms` is None while it goes on.
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
    """Warm-ups of the cache, kept for the whole fleet. Every method raises `StoreUnavailable`.

    Questions are what `create` was given, each different from all others of the job.
    """

    async def create(self, job: str, questions: Sequence[bytes]) -> None:
        """Begins one that nobody holds yet."""

    async def progress(self, job: str) -> WarmUpProgress | None:
        """None where there is none of that name, or none any more."""

    async def cancel(self, job: str) -> None:
        """Ends one that goes on."""

    async def unfinished(self) -> list[str]:
        """Those that go on, the oldest first."""

    async def hold(self, job: str, seconds: float) -> bool:
        """Whether it goes on and is this worker's, now taken or renewed, for so many seconds. 0 gives it up."""

    async def left(self, job: str, count: int) -> list[bytes]:
        """The first `count` questions that are not settled."""

    async def settle(self, job: str, question: bytes, counts: Sequence[WarmUpCount], error: str = "") -> bool:
        """Counts a question, once; without one, only ends what has none left. Whether the warm-up goes on."""
