"""One retry per call, and few among many calls."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from api.errors import FAULTS, UpstreamError, UpstreamFault
from api.ollama.pool import RESERVE, SHARE, WINDOW, RetryBudget, with_one_retry
from api.values import Retry

CALLS = 100


async def attempts(fault: UpstreamFault, calls: int) -> int:
    """Returns how often `calls` calls are tried in total if all fail with `fault`."""
    budget, seen = RetryBudget(), Counter[str]()

    async def fail() -> None:
        seen["attempts"] += 1
        raise UpstreamError(fault, "as told")

    results = await asyncio.gather(*(with_one_retry(fail, budget) for _ in range(calls)), return_exceptions=True)
    assert all(isinstance(result, UpstreamError) and result.fault is fault for result in results)
    return seen["attempts"]


@pytest.mark.parametrize("fault", list(UpstreamFault))
async def test_a_call_is_retried_once_if_its_fault_allows(fault: UpstreamFault) -> None:
    assert await attempts(fault, 1) == (2 if FAULTS[fault].retryable else 1)


async def test_a_failing_ollama_gets_at_most_a_fifth_more_load() -> None:
    retries = await attempts(UpstreamFault.SERVER_ERROR, CALLS) - CALLS
    assert RESERVE <= retries <= RESERVE + SHARE * CALLS


async def test_a_stale_connection_costs_no_budget() -> None:
    assert await attempts(UpstreamFault.CONNECTION_STALE, CALLS) == 2 * CALLS


async def test_a_successful_retry_returns_its_answer() -> None:
    failures = [UpstreamError(UpstreamFault.CONNECT_FAILED, "as told")]

    async def call() -> str:
        if failures:
            raise failures.pop()
        return "answer"

    assert await with_one_retry(call, RetryBudget()) == "answer"


class ManualClock:
    """A clock that only moves when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def spent(budget: RetryBudget) -> int:
    """Returns how many retries the budget allows at once."""
    return next(count for count in range(10_000) if not budget.spend())


def test_the_budget_is_a_share_of_the_last_minute() -> None:
    clock = ManualClock()
    budget = RetryBudget(clock)
    for _ in range(CALLS):
        budget.called()
    assert spent(budget) == RESERVE + SHARE * CALLS
    clock.now += WINDOW / 2
    assert spent(budget) == 0
    clock.now += WINDOW / 2
    assert spent(budget) == RESERVE, "neither the calls nor the retries of a minute ago count"


def test_a_worker_respects_the_budget_of_the_fleet() -> None:
    budget = RetryBudget()
    for _ in range(CALLS):
        budget.called()
    budget.take_unsent()
    budget.fleet_is(calls=4 * CALLS, retries=int(RESERVE + SHARE * 4 * CALLS) - 3)
    assert spent(budget) == 3
    assert budget.take_unsent() == (0, 3)
    budget.fleet_is_unknown()
    assert spent(budget) == RESERVE + SHARE * CALLS - 3


@pytest.mark.parametrize("retry", ["elsewhere", "spent"])
def test_the_adapter_retries_only_stale_connections_if_its_caller_retries(retry: Retry) -> None:
    budget = RetryBudget()
    assert not budget.admits(UpstreamError(UpstreamFault.SERVER_ERROR, "as told"), retry)
    assert budget.admits(UpstreamError(UpstreamFault.CONNECTION_STALE, "as told"), retry)
    assert budget.retried == 0
