"""What the query flow needs from the outside, as protocols. Adapters implement them; only `wiring` knows which."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

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
        self, embedder: EmbedderIdentity, scope: str, vector: Vector, now_ms: int, *, stale: bool = False
    ) -> CacheMatch | None:
        """The nearest entry of the scope, whatever its similarity: one round trip. With `stale`, fresh or not."""

    async def store(self, scope: str, digest: str, vector: Vector | None, answer: NewAnswer) -> CachedAnswer:
        """Stores an answer under its absolute lifetime, replacing one of the same digest."""

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
    """Single flight: equal questions in flight anywhere are generated once over the fleet, without Redis once a worker."""

    def join(self, key: FlightKey, lead: Lead, *, asked_ms: int, whole: bool) -> AbstractAsyncContextManager[Seat]:
        """A seat. `lead` is called where this worker has to generate; who leaves last ends that.

        `asked_ms`: when the cache was asked in vain, by Redis's clock. `whole`: this caller wants no tokens.
        """

    def sole(self, key: FlightKey) -> AbstractAsyncContextManager[Claim | None]:
        """The lead of work on `key` that nobody waits for; None where another worker has it, or Redis is down."""


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
        """What was last published and has not expired."""


class Bulkhead(Protocol):
    """The bound on calls to Ollama at once, over the fleet."""

    def permit(self, tenant: str, *, background: bool = False) -> AbstractAsyncContextManager[None]:
        """Holds a permit while the block runs; waits for one, in turn with other tenants, if it must.

        `background` work waits behind all users. Raises `BulkheadFull` when too many wait, or for too long.
        """
