"""At most one retry a call, and only so many among all calls: a struggling Ollama must not get twice the load."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from api.errors import UpstreamError
from api.faults import UpstreamFault

T = TypeVar("T")

SHARE: Final = 0.2
"""Retries for each call, in the long run."""
RESERVE: Final = 10.0
"""Retries that may be saved up."""
PAUSE: Final = (0.05, 0.15)
"""Seconds before a retry, drawn at random: a server that restarts needs a moment, and callers should not march."""


class RetryBudget:
    """Each call saves `SHARE` of a retry, each retry costs one."""

    def __init__(self) -> None:
        self._saved = RESERVE

    def called(self) -> None:
        """Notes a call, its retry aside."""
        self._saved = min(RESERVE, self._saved + SHARE)

    def admits(self, error: UpstreamError) -> bool:
        """Whether a call that failed with `error` before any byte may be repeated; if so, the budget is charged.

        A stale connection costs nothing: Ollama never saw the request.
        """
        if not error.row.retryable:
            return False
        if error.fault is UpstreamFault.CONNECTION_STALE:
            return True
        if self._saved < 1:
            return False
        self._saved -= 1
        return True


async def with_one_retry(call: Callable[[], Awaitable[T]], budget: RetryBudget) -> T:
    """What `call()` gives, called at most twice. It must raise its errors before anything of its answer is used."""
    budget.called()
    try:
        return await call()
    except UpstreamError as error:
        if not budget.admits(error):
            raise
        stale = error.fault is UpstreamFault.CONNECTION_STALE
    if not stale:
        await asyncio.sleep(random.uniform(*PAUSE))  # noqa: S311 - no secret
    return await call()
