"""A question, validated, with everything its answer depends on.

The request's `Cache-Control` (RFC 9111, section 5.2.1), as far as a cache of answers can obey it.

The caller's own deadline (`X-Request-Timeout`). Passing it says nothing about Ollama.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from api.cancellation import CancelScope
from api.errors import DeadlinePassed
from api.ports.documents import DocumentFilter
from api.query import prompt
from api.values import ChatMessage

MAX_AGE: Final = 2**31
"""What the RFC (section 1.2.2) has a larger number of seconds stand for."""


@dataclass(frozen=True, slots=True)
class CacheControl:
    """What the caller allows. `max_age` in seconds."""

    no_cache: bool = False
    no_store: bool = False
    only_if_cached: bool = False
    max_age: int | None = None
    reads: bool = field(init=False)
    """Whether a cached answer may be served."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "reads", not (self.no_cache or self.no_store))


UNLIMITED: Final = CacheControl()
"""Of a request without the header."""


def parse(header: str) -> CacheControl:
    """Unknown directives are ignored, as the RFC has it; so is a `max-age` that is not a number."""
    directives = dict(_directive(part) for part in header.lower().split(",") if part.strip())
    max_age = directives.get("max-age", "")
    return CacheControl(
        no_cache="no-cache" in directives,
        no_store="no-store" in directives,
        only_if_cached="only-if-cached" in directives,
        max_age=_seconds(max_age) if max_age.isascii() and max_age.isdigit() else None,
    )


def _seconds(digits: str) -> int:
    """Python refuses to read a number of thousands of digits."""
    significant = digits.lstrip("0") or "0"
    return MAX_AGE if len(significant) > 10 else min(int(significant), MAX_AGE)


def _directive(part: str) -> tuple[str, str]:
    name, _, value = part.partition("=")
    return name.strip(), value.strip().strip('"')


SEMANTIC_LIMIT: Final = 500
"""Bytes of a question that is compared by meaning. A longer one is mostly material: two that differ in one line of it,
or behind what the embedder reads, are near each other and ask for different answers."""


@dataclass(frozen=True, slots=True)
class Query:
    """A question, validated, with everything its answer depends on. `timeout`: the caller's own, in seconds.

    `documents`: which of the tenant's documents the answer may be grounded in.
    `template` and `system` say how the turns are put to the model, see `prompt`.
    `keeps_history`: it was tried to rewrite the question to stand alone, in vain.
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
    template: prompt.Template = prompt.GROUNDED
    system: str | None = None
    keeps_history: bool = False

    @property
    def has_meaning(self) -> bool:
        """Whether it may be compared by meaning: not where that depends on earlier turns, nor where it is long."""
        return not self.history and len(self.question.encode("utf-8", "replace")) <= SEMANTIC_LIMIT


@dataclass(slots=True)
class Timings:
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


class Deadline:
    """`seconds` from the making of this object; None for none. Ollama's own deadlines go on beside it."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._at = None if seconds is None else asyncio.get_running_loop().time() + seconds

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Around a wait, never around a `yield`: past the deadline the wait is cancelled. Raises `DeadlinePassed`.

        A wait that begins late is not begun. What it brings too late is not used.
        """
        if self._at is None:
            yield
            return
        loop = asyncio.get_running_loop()
        if loop.time() >= self._at:
            raise self._passed()
        with CancelScope() as scope:
            timer = loop.call_at(self._at, scope.cancel)
            try:
                yield
            finally:
                timer.cancel()
        if scope.cancelled:
            raise self._passed()

    def _passed(self) -> DeadlinePassed:
        return DeadlinePassed(f"The answer took longer than the {self._seconds:g} s of the request.")
