"""One retry a call, and few among many calls."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from api.errors import UpstreamError
from api.faults import FAULTS, UpstreamFault
from api.ollama.retries import RESERVE, SHARE, RetryBudget, with_one_retry

CALLS = 100


async def attempts(fault: UpstreamFault, calls: int) -> int:
    """How often `calls` calls, all of which fail with `fault`, are tried together."""
    budget, seen = RetryBudget(), Counter[str]()

    async def fail() -> None:
        seen["attempts"] += 1
        raise UpstreamError(fault, "as told")

    results = await asyncio.gather(*(with_one_retry(fail, budget) for _ in range(calls)), return_exceptions=True)
    assert all(isinstance(result, UpstreamError) and result.fault is fault for result in results)
    return seen["attempts"]


@pytest.mark.parametrize("fault", list(UpstreamFault))
async def test_a_call_is_repeated_once_where_its_fault_allows(fault: UpstreamFault) -> None:
    assert await attempts(fault, 1) == (2 if FAULTS[fault].retryable else 1)


async def test_a_failing_ollama_gets_a_fifth_more_load_at_most() -> None:
    retries = await attempts(UpstreamFault.SERVER_ERROR, CALLS) - CALLS
    assert RESERVE <= retries <= RESERVE + SHARE * CALLS


async def test_a_stale_connection_costs_no_budget() -> None:
    assert await attempts(UpstreamFault.CONNECTION_STALE, CALLS) == 2 * CALLS


async def test_a_retry_that_works_is_the_answer() -> None:
    failures = [UpstreamError(UpstreamFault.CONNECT_FAILED, "as told")]

    async def call() -> str:
        if failures:
            raise failures.pop()
        return "answer"

    assert await with_one_retry(call, RetryBudget()) == "answer"
