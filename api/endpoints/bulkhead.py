"""The bulkheads, for operators."""

from __future__ import annotations

from typing import Any, Final, get_args

from fastapi import APIRouter, Request

from api.bulkhead.fleet_bulkhead import FleetBulkhead
from api.bulkhead.state import Reading, Reason
from api.endpoints.checked_route import CheckedRoute, needs
from api.endpoints.worker_state import worker_state

REASONS: Final[tuple[Reason, ...]] = get_args(Reason)

router = APIRouter(route_class=CheckedRoute, prefix="/api/bulkhead", tags=["bulkhead"])


@router.get("/metrics", summary="Calls to Ollama at once, and who waits, fleet-wide")
@needs("operator")
async def metrics(request: Request) -> dict[str, Any]:
    """The generate bulkhead of the first backend; `bulkheads` has all of them. Only an admin sees names of tenants."""
    state = worker_state(request)
    named = state.access.is_admin(request)
    figures = {name: _figures(bulkhead, await bulkhead.reading(), named) for name, bulkhead in state.bulkheads.items()}
    return {**next(iter(figures.values())), "bulkheads": figures}


def _figures(bulkhead: FleetBulkhead, reading: Reading, named: bool) -> dict[str, Any]:
    stats = reading.stats
    return {
        "limit": bulkhead.limit,
        "reserved": bulkhead.policy.reserve,
        "in_use": reading.in_use,
        "waiting": len(reading.queue),
        "waiting_tenants": len(reading.waiting_by_tenant),
        "waiting_by_tenant": reading.waiting_by_tenant if named else None,
        "max_queue": bulkhead.policy.max_queue,
        "max_wait_seconds": bulkhead.policy.max_wait,
        "service_seconds": round(stats.get("service_ms", 0.0) / 1000, 3),
        "served": int(stats.get("served", 0)),
        "rejected": {reason: int(stats.get(f"rejected_{reason}", 0)) for reason in REASONS},
        "lost_permits": int(stats.get("lost_permits", 0)),
        "store": bulkhead.store_name,
    }
