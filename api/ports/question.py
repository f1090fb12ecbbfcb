"""Request and response types: Query, Timings, answer events, Cache-Control."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from api.ports.document_store import DocumentFilter
from api.ports.experiment import Variant
from api.ports.limits import Charge
from api.values import (
    CacheMatch,
    CacheStatus,
    ChatMessage,
    CompletedAnswer,
    ForwardedRequest,
    Priority,
    Queued,
    Source,
    Token,
    Usage,
)

MAX_AGE: Final = 2**31
"""The largest number of seconds; RFC 9111 (section 1.2.2) substitutes it for larger ones."""
SEMANTIC_LIMIT: Final = 500
"""Bytes of a question that may be compared by meaning. A longer one is mostly material: two that differ in one line, or
past what the embedder reads, have similar vectors and ask for different answers."""

Template = Literal["grounded", "raw"]
GROUNDED: Final = "grounded"
"""The template file words the prompt."""
VARIANT_HEADER: Final = "X-Ragherd-Variant"
"""The response's header with the label of the experiment's variant."""
CLIENT_HEADER: Final = "X-Ragherd-Client"
"""The request's header that names the end user."""
RAW: Final = "raw"
"""The turns go to the model as the client sent them, with its own system message or none."""


@dataclass(frozen=True, slots=True)
class CacheControl:
    """The caller's `Cache-Control` (RFC 9111, section 5.2.1). `max_age` in seconds."""

    no_cache: bool = False
    no_store: bool = False
    only_if_cached: bool = False
    max_age: int | None = None

    reads: bool = field(init=False)
    """True if a cached answer may be served."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "reads", not (self.no_cache or self.no_store))


UNLIMITED: Final = CacheControl()
"""The value for a request without the header."""


def parse(header: str) -> CacheControl:
    """Ignores unknown directives, as the RFC requires, and a `max-age` that is not a number."""
    directives = dict(_directive(part) for part in header.lower().split(",") if part.strip())
    max_age = directives.get("max-age", "")
    return CacheControl(
        no_cache="no-cache" in directives,
        no_store="no-store" in directives,
        only_if_cached="only-if-cached" in directives,
        max_age=_seconds(max_age) if max_age.isascii() and max_age.isdigit() else None,
    )


def _seconds(digits: str) -> int:
    """Python refuses to parse a number of thousands of digits."""
    significant = digits.lstrip("0") or "0"
    return MAX_AGE if len(significant) > 10 else min(int(significant), MAX_AGE)


def _directive(part: str) -> tuple[str, str]:
    name, _, value = part.partition("=")
    return name.strip(), value.strip().strip('"')


@dataclass(frozen=True, slots=True)
class Query:
    """A validated question with everything its answer depends on. `timeout`: the caller's own, in seconds.

    `documents` narrows which of the tenant's documents may ground the answer.
    `template` and `system` say how the turns are put to the model.
    `keeps_history`: rewriting the question to stand alone failed, so the prompt keeps the earlier turns.
    `request_id`: names the answer in feedback; empty if nobody can judge it.
    `forwarded`: the request goes to Ollama as it came, and its answer is found again only by the same request.
    `priority`: whether it waits for a permit as an interactive question or as batch work.
    `charge`: what it is charged, if its key or its tenant has limits.
    `client`: names the caller's user, if an experiment assigns clients. `variant`: the one that holds, if any.
    """

    question: str
    tenant: str
    model: str
    top_k: int = 4
    options: dict[str, Any] = field(default_factory=dict)
    documents: DocumentFilter = field(default_factory=DocumentFilter)
    history: tuple[ChatMessage, ...] = ()
    cache_control: CacheControl = UNLIMITED
    timeout: float | None = None
    template: Template = GROUNDED
    system: str | None = None
    keeps_history: bool = False
    request_id: str = ""
    forwarded: ForwardedRequest | None = None
    client: str = ""
    variant: Variant | None = None
    priority: Priority = Priority.USER
    charge: Charge | None = field(default=None, compare=False)

    @property
    def has_meaning(self) -> bool:
        """False if vectors must not be compared: the meaning depends on earlier turns, or the question is long."""
        return not self.history and self.is_short

    @property
    def wants_passages(self) -> bool:
        """True if the answer is grounded in the tenant's documents, if there are any."""
        return self.template != RAW and self.top_k > 0

    @property
    def is_short(self) -> bool:
        """True if the question's vector covers all that the answer depends on."""
        return self.forwarded is None and len(self.question.encode("utf-8", "replace")) <= SEMANTIC_LIMIT


@dataclass(slots=True)
class Timings:
    """Seconds spent in each stage. `lag`: the part of `cache` in which this worker was busy, not Redis."""

    embed: float = 0.0
    cache: float = 0.0
    retrieve: float = 0.0
    generate: float = 0.0
    total: float = 0.0
    lag: float = 0.0
    began: float = field(default_factory=time.perf_counter)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds the time of the block to a stage, however the block ends."""
        started = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, stage, getattr(self, stage) + time.perf_counter() - started)


@dataclass(frozen=True, slots=True)
class AnswerStarted:
    """The facts known when the first words arrive. `match` is set if the answer comes from the cache.

    `variant`: the label of the experiment's variant; empty without one.
    """

    status: CacheStatus
    sources: tuple[Source, ...] = ()
    match: CacheMatch | None = None
    variant: str = ""


@dataclass(frozen=True, slots=True)
class AnswerFinished:
    """An answer and how it came about.

    `match` is set if it came from the cache, `completed` if the language model generated it.
    `stored`: this caller's request put it into the cache. `variant` is as in `AnswerStarted`.
    `agreed`: what a repeat of the question may rely on, if it was answered by meaning.
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
    variant: str = ""
    agreed: Any = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class AnswerQueued:
    """The answer waits for a permit. `status` and `variant` are what they will be unless the cache supplies it."""

    place: Queued
    status: CacheStatus
    variant: str = ""
    match: None = None


AnswerEvent = AnswerQueued | AnswerStarted | Token | AnswerFinished
"""An answer as it comes: perhaps `AnswerQueued`s, one `AnswerStarted`, `Token`s, one `AnswerFinished`."""
