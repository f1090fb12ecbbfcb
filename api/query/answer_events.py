"""An answer, how it came about, and who is told of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from api.errors import EmbeddingUnavailable, RagherdError, StoreUnavailable, UpstreamError
from api.query.candidates import Candidate
from api.query.question import Query, Timings
from api.values import CacheMatch, CacheStatus, CompletedAnswer, Source, Token, Usage


@dataclass(frozen=True, slots=True)
class AnswerStarted:
    """What is known as soon as the first words are. `match` is set where the cache gives the answer."""

    status: CacheStatus
    sources: tuple[Source, ...] = ()
    match: CacheMatch | None = None


@dataclass(frozen=True, slots=True)
class AnswerFinished:
    """An answer and how it came about.

    `match` is set where the cache gave it, `completed` where the language model did.

    `stored`: the cache took it, because this caller asked.
    """

    answer: str
    model: str
    status: CacheStatus
    timings: Timings
    sources: tuple[Source, ...] = ()
    match: CacheMatch | None = None
    usage: Usage = field(default_factory=Usage)
    completed: CompletedAnswer | None = None
    entry: str | None = None
    stored: bool = False


AnswerEvent = AnswerStarted | Token | AnswerFinished
"""An answer as it comes: one `AnswerStarted`, `Token`s, `AnswerFinished`."""


RefreshOutcome = Literal["stored", "not_stored", "failed", "elsewhere", "too_many"]
"""What became of the refreshing of an expired answer: another worker may be at it, or this one at too many."""


class QueryObserver(Protocol):
    """Who counts what the flow does."""

    def answered(self, query: Query, answered: AnswerFinished) -> None: ...

    def missed(self) -> None: ...

    def generated(self, usage: Usage, *, stored: bool) -> None: ...

    def refused(self, query: Query, error: RagherdError) -> None: ...

    def left(self, query: Query) -> None: ...

    def store_failed(self, error: StoreUnavailable) -> None: ...

    def store_late(self, error: StoreUnavailable) -> None: ...

    def stored_late(self) -> None: ...

    def embedding_failed(self, error: EmbeddingUnavailable) -> None: ...

    def cited(self, sources: int, removed: int) -> None: ...

    def upstream_failed(self, error: UpstreamError) -> None: ...

    def considered(self, candidates: Sequence[Candidate]) -> None: ...

    def language_unknown(self) -> None: ...

    def refreshing(self, outcome: RefreshOutcome) -> None: ...
