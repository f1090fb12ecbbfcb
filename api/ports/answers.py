"""The answers of the whole fleet, and what is kept beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from api.model import CachedAnswer, CacheMatch, EmbedderIdentity, Source, Usage, Vector
from api.ports.passages import Corpus, DocumentFilter


@dataclass(frozen=True, slots=True)
class Claim:
    """The lead of a flight: the key of its hash in Redis, and the fence that the hash has while the lead lasts."""

    key: str
    fence: str


@dataclass(frozen=True, slots=True)
class Grounds:
    """The documents that an answer was looked for in, as they were then.

    `at_ms`: a moment before that, by the clock of the Redis that the answer is to be stored in. `wanted` and `top_k`
    are what it takes to look again.
    """

    top_k: int
    wanted: DocumentFilter
    corpus: Corpus
    at_ms: int


@dataclass(frozen=True, slots=True)
class NewAnswer:
    """An answer to be stored. `asked_ms`: when the cache was asked in vain, by Redis's clock; 0 where it was not.

    `grounds` is None where no document was looked for. `unread`: what the embedder could not read of the question.
    """

    question: str
    answer: str
    model: str
    tenant: str
    sources: tuple[Source, ...] = ()
    usage: Usage = field(default_factory=Usage)
    asked_ms: int = 0
    grounds: Grounds | None = None
    unread: tuple[str, ...] = ()


class AnswerCache(Protocol):
    """The answers of the whole fleet. Every method raises `StoreUnavailable` when Redis can not be used."""

    async def find_exact(self, scope: str, digest: str, tenant: str = "") -> ExactLookup:
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

        None where it was invalidated since it was asked for, or where `claim` is another worker's by now. Raises
        `DocumentsChanged` where that is so of the documents alone: the answer is to be stored if it would be the same.
        """

    def used(self, match: CacheMatch) -> None:
        """Notes that an entry was served; no I/O."""


@dataclass(frozen=True, slots=True)
class ExactLookup:
    """What the exact tier found. `match` may be past its lifetime (`ttl_seconds` < 0).

    `invalidated_ms`: when answers to this question, of this tenant, or all were last deleted; 0 where they never were.
    """

    match: CacheMatch | None
    now_ms: int
    invalidated_ms: int = 0


class CondensedQuestions(Protocol):
    """Follow-up questions as they were rewritten to stand alone. Raises `StoreUnavailable`."""

    async def find(self, place: str) -> str | None:
        """The stand-alone question; empty where it cannot be rewritten; None where nothing is known."""

    async def remember(self, place: str, question: str) -> None:
        """Keeps it for as long as an answer is fresh."""
