"""Background refreshes: each question once, limited concurrency, and every outcome counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from api.errors import BreakerOpen
from api.ports.answer_cache import Claim
from api.ports.question import Query
from api.ports.telemetry import Telemetry
from api.query.cache import Lookup
from api.query.cache_key import CacheKey
from api.query.generate import CONCURRENCY, Refresher
from api.values import CompletedAnswer, EmbedderIdentity, FlightKey, Usage

CLAIM = Claim("rag:flight:{x}:refresh", "fence")


class FakeAnswers:
    """A stand-in for `FreshAnswers`."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.background: set[bool] = set()
        self.claims: list[Claim | None] = []
        self.go_on = asyncio.Event()
        self.error: Exception | None = None
        self.entry: str | None = "rag:cache:x"

    async def generate(
        self,
        query: Query,
        _: Lookup,
        __: Any,
        ___: Any,
        claim: Claim | None,
        *,
        buffered: bool,
        background: bool,
    ) -> CompletedAnswer:
        self.background.add(background and buffered)
        self.claims.append(claim)
        self.begun.append(query.question)
        await self.go_on.wait()
        if self.error is not None:
            raise self.error
        return CompletedAnswer("text", "m", Usage(), entry=self.entry)


class FakeFlights:
    """Stands where `Flights` does."""

    def __init__(self) -> None:
        self.taken = False

    @asynccontextmanager
    async def exclusive(self, _: FlightKey) -> AsyncGenerator[Claim | None, None]:
        yield None if self.taken else CLAIM


class RecordingTelemetry(Telemetry):
    """Records events."""

    def __init__(self) -> None:
        self.outcomes: list[str] = []

    def refreshing(self, outcome: str) -> None:
        self.outcomes.append(outcome)


class Case:
    def __init__(self) -> None:
        self.fresh, self.flights, self.seen = FakeAnswers(), FakeFlights(), RecordingTelemetry()
        self.refresher = Refresher(self.fresh, self.flights, self.seen)  # type: ignore[arg-type]

    def start(self, question: str = "q") -> None:
        key = CacheKey(EmbedderIdentity("e", 4, "aaaaaaaaaa"), "aaaaaaaaaa-scope", question)
        self.refresher.start(Query(question, "t", "m"), Lookup(key=key))

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)


@pytest.fixture
async def case() -> AsyncIterator[Case]:
    case = Case()
    yield case
    await case.refresher.aclose()


async def test_a_question_is_refreshed_once_behind_all_users(case: Case) -> None:
    for _ in range(5):
        case.start()
    await case.settle()
    case.start()
    case.fresh.go_on.set()
    await case.settle()
    assert (case.fresh.begun, case.fresh.background, case.fresh.claims) == (["q"], {True}, [CLAIM])
    assert case.seen.outcomes == ["stored"]
    case.start()
    await case.settle()
    assert len(case.fresh.begun) == 2


async def test_concurrency_is_bounded(case: Case) -> None:
    for number in range(CONCURRENCY + 3):
        case.start(f"q{number}")
    await case.settle()
    assert len(case.fresh.begun) == CONCURRENCY
    assert case.seen.outcomes == ["too_many"] * 3


async def test_a_question_refreshed_by_another_worker_is_skipped(case: Case) -> None:
    case.flights.taken = True
    case.start()
    await case.settle()
    assert (case.fresh.begun, case.seen.outcomes) == ([], ["elsewhere"])


async def test_a_failure_is_only_counted(case: Case) -> None:
    case.fresh.error = BreakerOpen("ollama", 5)
    case.fresh.go_on.set()
    case.start("one")
    await case.settle()
    case.fresh.error, case.fresh.entry = None, None
    case.start("two")
    await case.settle()
    assert case.seen.outcomes == ["failed", "not_stored"]


async def test_shutdown_cancels_the_refresh(case: Case) -> None:
    case.start()
    await case.settle()
    await case.refresher.aclose()
    assert case.seen.outcomes == []
