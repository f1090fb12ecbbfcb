"""What operators read: connections, workers, Prometheus."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.endpoints.checked_route import CheckedRoute, needs
from api.endpoints.worker_state import worker_state
from api.errors import StoreUnavailable

router = APIRouter(route_class=CheckedRoute, tags=["operations"])

NUMBERS: Final = frozenset({"pid", "requests"})
POOL: Final = "pool_"


@router.get("/api/connection-pool/metrics", summary="This worker's connections to Ollama, and the fleet's")
@needs("operator")
async def pool_metrics(request: Request) -> dict[str, Any]:
    """`workers` is what every live worker last said; only this one while Redis is down."""
    state = worker_state(request)
    report = state.pool.report()
    try:
        workers = {worker["id"]: _worker(worker)["pool"] for worker in await state.fleet.live()}
    except StoreUnavailable:
        workers = {}
    return {**report, "worker": state.worker, "workers": workers}


@router.get("/api/workers", summary="Every live worker of every replica")
@needs("operator")
async def workers(request: Request) -> dict[str, Any]:
    """503 while Redis is down."""
    found = await worker_state(request).fleet.live()
    return {"workers": [_worker(worker) for worker in found]}


@router.get("/metrics", summary="Prometheus", response_class=Response)
@needs("operator")
async def prometheus(request: Request) -> Response:
    """Every process of this replica together. METRICS_PORT serves the same from a process of its own."""
    state, accept = worker_state(request), request.headers.get("accept", "")
    body, content_type = await asyncio.to_thread(state.metrics.exposition, accept)
    return Response(body, headers={"Content-Type": content_type})


def _worker(fields: dict[str, str]) -> dict[str, Any]:
    """A worker's hash as JSON: numbers as numbers, the pool's figures in an object of their own."""
    plain = {name: value for name, value in fields.items() if not name.startswith(POOL)}
    pool = {name.removeprefix(POOL): _number(value) for name, value in fields.items() if name.startswith(POOL)}
    return {**{name: int(value) if name in NUMBERS else value for name, value in plain.items()}, "pool": pool}


def _number(text: str) -> float | int | str:
    """As it is where it is no number: a worker of a later release may say more."""
    with suppress(ValueError):
        return float(text) if "." in text else int(text)
    return text
