"""An answer, how it came about, and who is told of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from api.errors import EmbeddingUnavailable, RagherdError, StoreUnavailable, UpstreamError
from api.model import CacheMatch, CacheStatus, Generation, Source, Usage
from api.query.question import Query


@dataclass(slots=True)
class Stages:
    """Seconds spent in each stage."""

    embed: float = 0.0
    cache: float = 0.0
    retrieve: float = 0.0
    generate: float = 0.0
    total: float = 0.0

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds the time of the block to a stage, however it ends."""
        started = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, stage, getattr(self, stage) + time.perf_counter() - started)


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer and how it came about. `match` is set where the cache gave it; `stored` where it took it."""

    answer: str
    model: str
    status: CacheStatus
    stages: Stages
    sources: tuple[Source, ...] = ()
    match: CacheMatch | None = None
    usage: Usage = field(default_factory=Usage)
    generation: Generation | None = None
    entry: str | None = None
    stored: bool = False


class QueryObserver(Protocol):
    """Who counts what the flow does."""

    def answered(self, query: Query, answered: Answered) -> None: ...

    def missed(self) -> None: ...

    def refused(self, query: Query, error: RagherdError) -> None: ...

    def store_failed(self, error: StoreUnavailable) -> None: ...

    def embedding_failed(self, error: EmbeddingUnavailable) -> None: ...

    def upstream_failed(self, error: UpstreamError) -> None: ...

    def below_threshold(self, similarity: float) -> None: ...
