"""Whether the service lives, is ready, and what it can use."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from api.breaker.state import State
from api.endpoints.checked_route import CheckedRoute, needs
from api.endpoints.worker_state import worker_state
from api.errors import ServiceUnavailable
from api.ports.stores import Store

router = APIRouter(route_class=CheckedRoute, prefix="/health", tags=["health"])


class RedisWarningOut(BaseModel):
    """Something about how a Redis is set up that an operator should change. It takes nothing out of service."""

    store: Store
    name: str
    advice: str


class HealthOut(BaseModel):
    """`database` is Redis, on a cluster every shard of it; `ollama` whether any backend answers now.

    `circuit_breaker` is the first one's state. `breaker_database` is the Redis of breakers and bulkheads, which is the
    same unless it has a URL of its own.
    """

    status: Literal["healthy", "degraded", "unhealthy"]
    database: bool
    breaker_database: bool
    ollama: bool
    circuit_breaker: State
    redis_warnings: list[RedisWarningOut]
    version: str
    worker: str


@router.get(
    "", summary="What the service can use now", responses={503: {"model": HealthOut, "description": "Unhealthy"}}
)
@needs("all")
async def health(request: Request, response: Response) -> HealthOut:
    """503 when neither Redis nor Ollama can be used; degraded without all of Redis or with a breaker not CLOSED."""
    worker = worker_state(request)
    reached = worker.reachability
    database, guards, ollama = await asyncio.gather(reached.redis(), reached.breaker_redis(), reached.ollama())
    states = worker.generation_states
    status: Literal["healthy", "degraded", "unhealthy"] = "healthy"
    if not database and not worker.reachability.redis_partly() and (not ollama or set(states) == {State.OPEN}):
        status, response.status_code = "unhealthy", 503
    elif not (database and guards) or set(states) != {State.CLOSED}:
        status = "degraded"
    return HealthOut(
        status=status,
        database=database,
        breaker_database=guards,
        ollama=ollama,
        circuit_breaker=states[0],
        redis_warnings=[RedisWarningOut(**asdict(warning)) for warning in worker.stores.warnings],
        version=worker.version,
        worker=worker.worker,
    )


@router.get("/live", summary="The event loop turns")
@needs("all")
async def live() -> dict[str, str]:
    """No I/O."""
    return {"status": "alive"}


@router.get("/ready", summary="Requests are welcome")
@needs("all")
async def ready(request: Request) -> dict[str, str]:
    """503 while starting and while draining. An outage of Redis or Ollama takes no replica out of service."""
    if getattr(request.app.state, "draining", False):
        raise ServiceUnavailable("The worker is draining.", retry_after=1)
    return {"status": "ready"}
