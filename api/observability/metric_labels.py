"""The values of the metrics' labels that are known beforehand."""

from __future__ import annotations

from typing import Literal

Stage = Literal["total", "embed", "cache", "retrieve", "generate"]
ConnectionEnd = Literal["silent", "idle", "head", "rest", "unread", "full", "refused"]
LookupResult = Literal["exact", "semantic", "stale", "miss", "unavailable"]
RefreshOutcome = Literal["stored", "not_stored", "failed", "elsewhere", "too_many"]
FlightEvent = Literal["handed_over", "alone", "fenced"]
RerankingOutcome = Literal["reranked", "failed"]
BreakerState = Literal["closed", "open", "half_open"]
BreakerOutcome = Literal["successful", "slow_successful", "failed", "slow_failed", "ignored"]
BulkheadReason = Literal["queue_full", "deadline", "displaced"]
