"""Endpoints of the circuit breakers, bulkheads and backends: figures, history, overrides and drain."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any, Final, get_args

from fastapi import APIRouter, Query, Request
from pydantic import BeforeValidator

from api.breaker.breaker_rules import recovery
from api.breaker.fleet_breaker import FleetBreaker
from api.breaker.state import BreakerReading, Override, State, Transition
from api.bulkhead.bulkhead_rules import BulkheadReading
from api.bulkhead.fleet_bulkhead import FleetBulkhead
from api.endpoints.audit import audited
from api.endpoints.health import AppState, worker_state
from api.endpoints.routes import CheckedRoute, needs
from api.endpoints.validation import rfc3339
from api.errors import LastBackend, NotFound
from api.ports.telemetry import BulkheadReason
from api.values import Priority

HISTORY_LIMIT: Final = 1000

_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d")


def _dated(given: Any) -> Any:
    if not (isinstance(given, str) and _DATE.match(given)):
        raise ValueError("must be an RFC 3339 time, such as 2026-11-23T13:00:00Z")
    return given


Moment = Annotated[datetime, BeforeValidator(_dated)]
"""Only text: pydantic also accepts numbers and guesses whether they are seconds or milliseconds."""

breaker_router = APIRouter(route_class=CheckedRoute, prefix="/api/circuit-breaker", tags=["circuit breaker"])


@breaker_router.get(
    "/metrics",
    summary="Show the state and counts of the fleet's breakers",
    operation_id="metrics_api_circuit_breaker_metrics_get",
)
@needs("operator")
async def breaker_metrics(request: Request) -> dict[str, Any]:
    """The breaker for answers of the first backend. `breakers` has all of them."""
    return await breaker_report(worker_state(request))


@breaker_router.get("/history", summary="List state changes, newest first")
@needs("operator")
async def history(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    since: Moment | None = None,
    breaker: str | None = None,
) -> dict[str, Any]:
    """Read from the log in Redis. `since` is an RFC 3339 time."""
    chosen = _chosen(worker_state(request), breaker)
    since_ms = _milliseconds(since) if since else 0
    found = await chosen.store.history(limit, since_ms)
    return {"breaker": chosen.name, "transitions": [_transition(transition) for transition in found]}


@breaker_router.get("/recovery", summary="Show outages and availability of the last 24 hours")
@needs("operator")
async def recovery_figures(request: Request, breaker: str | None = None) -> dict[str, Any]:
    """Computed from the history of about 1,000 state changes. 503 while Redis is down."""
    chosen = _chosen(worker_state(request), breaker)
    transitions = await chosen.store.history(HISTORY_LIMIT)
    now_ms = (await chosen.store.read()).now_ms
    figures = asdict(recovery(transitions[::-1], now_ms))
    outages = [
        {
            "began": rfc3339(outage["began_ms"]),
            "ended": rfc3339(outage["ended_ms"]) if outage["ended_ms"] is not None else None,
            "seconds": ((outage["ended_ms"] or now_ms) - outage["began_ms"]) / 1000,
            "probes": outage["probes"],
            "reason": outage["reason"],
        }
        for outage in reversed(figures.pop("outages"))
    ]
    return {"breaker": chosen.name, **figures, "outages": outages}


@breaker_router.post("/force-open", summary="Reject every call until reset")
@needs("admin")
async def force_open(request: Request, breaker: str | None = None) -> dict[str, Any]:
    """Affects every breaker of the fleet, or the named one. Its backend gets no more calls. The history records it."""
    return await _override(request, "OPEN", breaker)


@breaker_router.post("/force-close", summary="Admit every call until reset")
@needs("admin")
async def force_close(request: Request, breaker: str | None = None) -> dict[str, Any]:
    """Affects the whole fleet: every breaker, or the named one. The history records it."""
    return await _override(request, "CLOSED", breaker)


@breaker_router.post("/reset", summary="Close the breaker, clear the counts and any override")
@needs("admin")
async def reset(request: Request, breaker: str | None = None) -> dict[str, Any]:
    """Affects the whole fleet: every breaker, or the named one. The history records it."""
    return await _override(request, "RESET", breaker)


ACTIONS: Final[Mapping[Override, str]] = {"OPEN": "force-open", "CLOSED": "force-close", "RESET": "reset"}
"""In the audit log."""


def _chosen(state: AppState, name: str | None) -> FleetBreaker:
    if name is None:
        return state.breaker
    if name not in state.breakers:
        raise NotFound(f"No breaker '{name[:100]}'. Breakers: {', '.join(state.breakers)}.")
    return state.breakers[name]


async def _override(request: Request, action: Override, name: str | None) -> dict[str, Any]:
    state = worker_state(request)
    selected = state.breakers.values() if name is None else [_chosen(state, name)]
    await audited(request, f"breaker.{ACTIONS[action]}", breaker=name)
    for breaker in selected:
        await breaker.override(action, state.worker)
    return await breaker_report(state)


async def breaker_report(state: AppState) -> dict[str, Any]:
    """Returns the figures of the first backend's breaker, and of each under `breakers`."""
    figures = {name: _breaker_figures(breaker, await breaker.reading()) for name, breaker in state.breakers.items()}
    return {**figures[str(state.breaker.name)], "breakers": figures}


def _breaker_figures(breaker: FleetBreaker, reading: BreakerReading) -> dict[str, Any]:
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


def _time(moment_ms: int, reading: BreakerReading, *, shared: bool) -> str | None:
    """Returns RFC 3339. A local breaker uses a monotonic clock, which is converted to wall-clock time."""
    if not moment_ms:
        return None
    return rfc3339(moment_ms if shared else round(time.time() * 1000) - (reading.now_ms - moment_ms))


def _milliseconds(moment: datetime) -> int:
    """Returns milliseconds since 1970, at least 0. A time without a zone is UTC."""
    zoned = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0, int(zoned.timestamp() * 1000))


def _transition(transition: Transition) -> dict[str, Any]:
    facts = asdict(transition)
    return {
        "id": facts.pop("id"),
        "time": rfc3339(facts.pop("at_ms")),
        "from": facts.pop("from_state"),
        "to": facts.pop("to_state"),
        **facts,
    }


REASONS: Final[tuple[BulkheadReason, ...]] = get_args(BulkheadReason)

bulkhead_router = APIRouter(route_class=CheckedRoute, prefix="/api/bulkhead", tags=["bulkhead"])


@bulkhead_router.get(
    "/metrics",
    summary="Show calls to Ollama and the queue, fleet-wide",
    operation_id="metrics_api_bulkhead_metrics_get",
)
@needs("operator")
async def bulkhead_metrics(request: Request) -> dict[str, Any]:
    """The bulkhead for answers of the first backend. `bulkheads` has all of them. Only admins see tenants' names."""
    state = worker_state(request)
    return await bulkhead_report(state, named=state.access.is_admin(request))


async def bulkhead_report(state: AppState, *, named: bool) -> dict[str, Any]:
    """Returns the figures of the first backend's bulkhead, and of each under `bulkheads`. `named`: with tenants."""
    figures = {
        name: _bulkhead_figures(bulkhead, await bulkhead.reading(), named) for name, bulkhead in state.bulkheads.items()
    }
    return {**next(iter(figures.values())), "bulkheads": figures}


def _bulkhead_figures(bulkhead: FleetBulkhead, reading: BulkheadReading, named: bool) -> dict[str, Any]:
    stats = reading.stats
    return {
        "limit": bulkhead.limit,
        "reserved": bulkhead.policy.reserve,
        "in_use": reading.in_use,
        "waiting": len(reading.queue),
        "waiting_by_priority": reading.waiting_by_priority,
        "waiting_tenants": len(reading.waiting_by_tenant),
        "waiting_by_tenant": reading.waiting_by_tenant if named else None,
        "max_queue": bulkhead.policy.max_queue,
        "max_wait_seconds": bulkhead.policy.max_wait,
        "batch_after_seconds": bulkhead.policy.batch_after,
        "service_seconds": round(stats.get("service_ms", 0.0) / 1000, 3),
        "served": int(stats.get("served", 0)),
        "rejected": {reason: int(stats.get(f"rejected_{reason}", 0)) for reason in REASONS},
        "rejected_by_priority": {priority.value: int(stats.get(f"rejected_{priority}", 0)) for priority in Priority},
        "lost_permits": int(stats.get("lost_permits", 0)),
        "store": bulkhead.store_name,
    }


backends_router = APIRouter(route_class=CheckedRoute, prefix="/api/backends", tags=["backends"])


@backends_router.get("", summary="Show each Ollama: its place, health, models, breakers and load")
@needs("operator")
async def backends(request: Request) -> dict[str, Any]:
    """`tokens_per_second` is measured by the worker that answers. All else is the same from every worker."""
    state = worker_state(request)
    bulkhead = await bulkhead_report(state, named=False)
    prompts = await state.remembered_prompts()
    return {"backends": backend_reports(state, await breaker_report(state), bulkhead, prompts)}


@backends_router.post("/{name}/drain", summary="Send a backend no more calls")
@needs("admin")
async def drain(request: Request, name: str, force: bool = False) -> dict[str, Any]:
    """Affects the whole fleet, until it is resumed. Calls in progress end. The breaker's history records it.

    409 for the last backend that is not drained, unless `force` is true.
    """
    state = worker_state(request)
    breaker = _backend(state, name)
    if not force:
        await _need_another(state, name)
    await audited(request, "backend.drain", backend=name, force=force)
    await breaker.drain(state.worker, drained=True)
    if not force:
        try:
            await _need_another(state, name)  # again: if two admins drain the last two at once, one of them sees both
        except LastBackend:
            await breaker.drain(state.worker, drained=False)
            raise
    return await backends(request)


@backends_router.post("/{name}/resume", summary="Use a drained backend again")
@needs("admin")
async def resume(request: Request, name: str) -> dict[str, Any]:
    """Affects the whole fleet. The breaker's history records it."""
    state = worker_state(request)
    breaker = _backend(state, name)
    await audited(request, "backend.resume", backend=name)
    await breaker.drain(state.worker, drained=False)
    return await backends(request)


def _backend(state: AppState, name: str) -> FleetBreaker:
    """Returns the breaker that knows whether a backend is drained. Raises `NotFound`."""
    known = _backends(state)
    if name not in known:
        raise NotFound(f"No backend '{name[:100]}'. Backends: {', '.join(known)}.")
    return state.breakers[name]


def _backends(state: AppState) -> dict[str, dict[str, Any]]:
    """Returns what this worker knows about each backend and its pool, by name."""
    found: dict[str, dict[str, Any]] = state.pool_report()["backends"]
    return found


async def _need_another(state: AppState, name: str) -> None:
    """Raises `LastBackend` if all other backends are drained, as Redis has it now."""
    others = [state.breakers[other] for other in _backends(state) if other != name]
    for breaker in others:
        await breaker.refresh()
    if all(breaker.drained for breaker in others):
        raise LastBackend(f"'{name}' is the last backend in use. With force=true it is drained all the same.")


def backend_reports(
    state: AppState, breaker: dict[str, Any], bulkhead: dict[str, Any], prompts: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Joins what is known about each backend. `breaker` and `bulkhead` are their reports.

    `prompts`: how many prompts the fleet remembers of each.
    """
    return [
        {
            **_backend_report(name, pool, state.breakers[name], breaker["breakers"], bulkhead["bulkheads"]),
            "remembered_prompts": prompts.get(name),
        }
        for name, pool in _backends(state).items()
    ]


def _backend_report(
    name: str, pool: dict[str, Any], breaker: FleetBreaker, breakers: dict[str, Any], bulkheads: dict[str, Any]
) -> dict[str, Any]:
    load, reading = bulkheads[name], breaker.view.reading
    since_ms = reading.breaker.drained_ms if reading is not None and pool["drained"] else 0
    return {
        "name": name,
        **{field: pool[field] for field in ("url", "tier", "weight", "drained")},
        "drained_at": rfc3339(since_ms) if since_ms else None,
        **{field: pool[field] for field in ("reachable", "models", "resident")},
        "breakers": {known: breakers[known]["state"] for known in (name, f"{name}-embed") if known in breakers},
        **{field: load[field] for field in ("in_use", "limit", "waiting", "max_queue")},
        "tokens_per_second": pool["ollama"]["tokens_per_second"],
    }
