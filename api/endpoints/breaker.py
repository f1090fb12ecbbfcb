"""The circuit breaker, for operators: its figures, its history, and overrides."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from api.breaker.fleet_breaker import FleetBreaker
from api.breaker.state import Reading, State, Transition
from api.breaker.store import Override
from api.endpoints.worker_state import WorkerState, worker_state

router = APIRouter(prefix="/api/circuit-breaker", tags=["circuit breaker"])


@router.get("/metrics", summary="State and counts, fleet-wide")
async def metrics(request: Request) -> dict[str, Any]:
    """The generate breaker of the first backend; `breakers` has all of them."""
    return await _metrics(worker_state(request))


@router.get("/history", summary="Transitions, newest first")
async def history(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    since: datetime | None = None,
    breaker: str | None = None,
) -> dict[str, Any]:
    """From the log in Redis; `since` is an RFC 3339 time."""
    state = worker_state(request)
    chosen = state.breakers.get(breaker, state.breaker) if breaker else state.breaker
    since_ms = int(since.timestamp() * 1000) if since else 0
    found = await chosen.store.history(limit, since_ms)
    return {"breaker": chosen.name, "transitions": [_transition(transition) for transition in found]}


@router.post("/force-open", summary="Reject every call until reset")
async def force_open(request: Request) -> dict[str, Any]:
    """Fleet-wide, recorded in the history."""
    return await _override(request, "OPEN")


@router.post("/force-close", summary="Admit every call until reset")
async def force_close(request: Request) -> dict[str, Any]:
    """Fleet-wide, recorded in the history."""
    return await _override(request, "CLOSED")


@router.post("/reset", summary="Back to CLOSED, counts at zero, no override")
async def reset(request: Request) -> dict[str, Any]:
    """Fleet-wide, recorded in the history."""
    return await _override(request, "RESET")


async def _override(request: Request, action: Override) -> dict[str, Any]:
    state = worker_state(request)
    state.access.require_admin(request)
    for breaker in state.breakers.values():
        await breaker.override(action, state.worker)
    return await _metrics(state)


async def _metrics(state: WorkerState) -> dict[str, Any]:
    figures = {name: _figures(breaker, await breaker.reading()) for name, breaker in state.breakers.items()}
    return {**figures[str(state.breaker.name)], "breakers": figures}


def _figures(breaker: FleetBreaker, reading: Reading) -> dict[str, Any]:
    state, totals = reading.breaker, reading.breaker.totals
    shared = breaker.store_name == "shared"
    wait = breaker.policy.timeout_ms if state.forced == "OPEN" else reading.position.wait_ms
    return {
        "state": state.state,
        "failure_count": totals.failed,
        "success_count": totals.successful,
        "total_calls": totals.successful + totals.failed,
        "last_failure_time": _time(state.last_failure_ms, reading, shared=shared),
        "rejected_calls": totals.rejected,
        "slow_calls": totals.slow,
        "ignored_calls": totals.ignored,
        "stale_results": totals.stale,
        "lost_probes": totals.lost,
        "consecutive_failures": state.consecutive_failures,
        "failure_rate": round(reading.failure_rate, 3),
        "slow_call_rate": round(reading.slow_rate, 3),
        "window_calls": reading.window_total,
        "opened_at": _time(state.since_ms, reading, shared=shared) if state.state is State.OPEN else None,
        "retry_after_seconds": math.ceil(wait / 1000),
        "probes_in_flight": reading.permits_in_use,
        "epoch": state.epoch,
        "reason": state.reason,
        "forced": state.forced or None,
        "enabled": breaker.policy.enabled,
        "store": breaker.store_name,
    }


def _time(moment_ms: int, reading: Reading, *, shared: bool) -> str | None:
    """RFC 3339. A local breaker counts on a monotonic clock, which is turned into wall time here."""
    if not moment_ms:
        return None
    seconds = moment_ms / 1000 if shared else time.time() - (reading.now_ms - moment_ms) / 1000
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _transition(transition: Transition) -> dict[str, Any]:
    facts = asdict(transition)
    at = datetime.fromtimestamp(facts.pop("at_ms") / 1000, UTC).isoformat(timespec="milliseconds")
    return {
        "id": facts.pop("id"),
        "time": at.replace("+00:00", "Z"),
        "from": facts.pop("from_state"),
        "to": facts.pop("to_state"),
        **facts,
    }
