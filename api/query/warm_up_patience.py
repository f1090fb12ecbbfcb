"""How long a warm-up waits after a failure before it tries the same question again: a pure decision."""

from __future__ import annotations

from typing import Final

from api.errors import BreakerOpen, BulkheadFull, EmbeddingUnavailable, StoreUnavailable, UpstreamError
from api.faults import UpstreamFault

LONGEST: Final = 10.0
"""Seconds. An operator may close a breaker, or a backend be back, before the time that was foretold."""
ATTEMPTS: Final = 3
"""Of one question, where the failure may be its own fault."""
NOT_ITS_FAULT: Final = frozenset(
    {
        UpstreamFault.CONNECT_FAILED,
        UpstreamFault.CONNECT_TIMEOUT,
        UpstreamFault.CONNECTION_STALE,
        UpstreamFault.POOL_TIMEOUT,
        UpstreamFault.BUSY,
    }
)
HOPELESS: Final = frozenset({UpstreamFault.MODEL_NOT_FOUND, UpstreamFault.REQUEST_REJECTED, UpstreamFault.UNAUTHORIZED})


def patience(error: BaseException, attempts: int) -> float | None:
    """Seconds until the next attempt; None: the question has failed. `attempts` have been made so far.

    What any question would meet now is waited out, for as long as it takes.
    """
    if isinstance(error, StoreUnavailable):
        return 1.0
    if isinstance(error, BreakerOpen | BulkheadFull):
        return min(LONGEST, max(0.1, error.retry_after))
    if isinstance(error, UpstreamError) and error.fault in NOT_ITS_FAULT:
        return min(LONGEST, float(error.headers.get("Retry-After", 1)))
    if isinstance(error, EmbeddingUnavailable) and isinstance(
        error.__cause__, BreakerOpen | BulkheadFull | UpstreamError
    ):
        return patience(error.__cause__, attempts)
    hopeless = isinstance(error, UpstreamError) and error.fault in HOPELESS
    if hopeless or not isinstance(error, UpstreamError | EmbeddingUnavailable) or attempts >= ATTEMPTS:
        return None
    return min(LONGEST, 2.0 ** (attempts - 1))
