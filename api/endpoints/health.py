"""Whether the service lives, is ready, and what it can use."""

from __future__ import annotations

import asyncio
from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from api.breaker.state import State
from api.endpoints.worker_state import worker_state
from api.errors import ServiceUnavailable

router = APIRouter(prefix="/health", tags=["health"])


class HealthOut(BaseModel):
    """`database` is Redis, on a cluster every shard of it; `ollama` whether any backend answers now.

    `circuit_breaker` is the first one's state.
    """

    status: Literal["healthy", "degraded", "unhealthy"]
    database: bool
    ollama: bool
    circuit_breaker: State
    version: str
    worker: str


@router.get("", summary="What the service can use now")
async def health(request: Request, response: Response) -> HealthOut:
    """503 when neither Redis nor Ollama can be used; degraded without all of Redis or with a breaker not CLOSED."""
    worker = worker_state(request)
    database, ollama = await asyncio.gather(worker.reachability.redis(), worker.reachability.ollama())
    states = worker.generation_states
    status: Literal["healthy", "degraded", "unhealthy"] = "healthy"
    if not database and not worker.reachability.redis_partly() and (not ollama or set(states) == {State.OPEN}):
        status, response.status_code = "unhealthy", 503
    elif not database or set(states) != {State.CLOSED}:
        status = "degraded"
    return HealthOut(
        status=status,
        database=database,
        ollama=ollama,
        circuit_breaker=states[0],
        version=worker.version,
        worker=worker.worker,
    )


@router.get("/live", summary="The event loop turns")
async def live() -> dict[str, str]:
    """No I/O."""
    return {"status": "alive"}


@router.get("/ready", summary="Requests are welcome")
async def ready(request: Request) -> dict[str, str]:
    """503 while starting and while draining. An outage of Redis or Ollama takes no replica out of service."""
    if getattr(request.app.state, "draining", False):
        raise ServiceUnavailable("The worker is draining.", retry_after=1)
    return {"status": "ready"}
