"""An answer, how it came about, and who is told of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol

from api.errors import EmbeddingUnavailable, RagherdError, StoreUnavailable, UpstreamError
from api.query.candidates import Candidate
from api.query.question import Query
from api.values import CacheMatch, CacheStatus, Landed, Source, Token, Usage


@dataclass(slots=True)
class Stages:
    """Seconds spent in each stage. `lag`: those of `cache` in which this worker was busy, and Redis not to blame."""

    embed: float = 0.0
    cache: float = 0.0
    retrieve: float = 0.0
    generate: float = 0.0
    total: float = 0.0
    lag: float = 0.0
    began: float = field(default_factory=time.perf_counter)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds the time of the block to a stage, however it ends."""
        started = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, stage, getattr(self, stage) + time.perf_counter() - started)

    def end(self) -> None:
        """The answer is there: `total` is the time since this object was made.

        Who waits for the language model waits for the passages too: that is taken out of `generate`.
        """
        self.generate = max(0.0, self.generate - self.retrieve)
        self.total = time.perf_counter() - self.began


@dataclass(frozen=True, slots=True)
class Opening:
    """What is known as soon as the first words are. `match` is set where the cache gives the answer."""

    status: CacheStatus
    sources: tuple[Source, ...] = ()
    match: CacheMatch | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer and how it came about. `match` is set where the cache gave it, `landed` where the language model did.

    `stored`: the cache took it, because this caller asked.
    """

    answer: str
    model: str
    status: CacheStatus
    stages: Stages
    sources: tuple[Source, ...] = ()
    match: CacheMatch | None = None
    usage: Usage = field(default_factory=Usage)
    landed: Landed | None = None
    entry: str | None = None
    stored: bool = False


AnswerEvent = Opening | Token | Answered
"""An answer as it comes: one `Opening`, `Token`s, `Answered`."""


RefreshOutcome = Literal["stored", "not_stored", "failed", "elsewhere", "too_many"]
"""What became of the refreshing of an expired answer: another worker may be at it, or this one at too many."""


class QueryObserver(Protocol):
    """Who counts what the flow does."""

    def answered(self, query: Query, answered: Answered) -> None: ...

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
