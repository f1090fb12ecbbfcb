"""Health, liveness and readiness; reports on connections, workers and the last 48 hours; the Prometheus endpoint.

`AppState` has the worker's resources. The lifespan opens them, and every endpoint reads them from
`request.state.worker`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from api.breaker.state import State
from api.cancellation import log_failure
from api.endpoints.routes import CheckedRoute, needs
from api.errors import ServiceUnavailable, StoreUnavailable
from api.ports.answer_cache import Store
from api.ports.limits import Charge

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping, Sequence

    from api.backends.embedder import EmbeddingCalls
    from api.breaker.fleet_breaker import FleetBreaker
    from api.bulkhead.fleet_bulkhead import FleetBulkhead
    from api.endpoints.access import Access
    from api.endpoints.mcp_api import McpServer
    from api.endpoints.streaming import Streaming
    from api.knowledge.document_service import DocumentService
    from api.knowledge.retrieval import Retriever
    from api.ports.access import KeyStore
    from api.ports.answer_cache import Feedback, StoreWarning
    from api.ports.answer_quality import QualityState
    from api.ports.audit import AuditLog
    from api.ports.inference import ModelCatalog
    from api.query.experiments import ExperimentControl, ExperimentView
    from api.query.explain import Explainer
    from api.query.limits import Limiter
    from api.query.service import QueryService
    from api.query.warm_up import Invalidator, WarmUps


import re
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Query
from pydantic import BeforeValidator, WithJsonSchema

from api.errors import NotFound

RECORDINGS: Final = 4
"""Recordings to transcribe that a worker has in memory at once, of at most MAX_AUDIO_BYTES each."""


@dataclass(frozen=True, slots=True)
class AppState:
    """One worker's open resources. Breakers and bulkheads begin with those of the first backend.

    `warm_ups` is None if the cache is disabled. `num_ctx` is the context size in tokens for all generations, or None
    for each model's default; `max_num_ctx` is the largest that a caller may ask for. With `pins_options`, callers may
    set no option that reloads a model. With `generate_context`, /api/generate always returns its `context`. With
    `admin_passthrough`, admins may change the models of Ollama. `cache_report`, `live_workers` and
    `recent` raise `StoreUnavailable`. `exposition` takes an `Accept` header and returns the metrics' text and content
    type. `history` is None if it is disabled; it takes the start and the end in milliseconds, the step in seconds, and
    whether to add the buckets, and returns JSON.
    """

    worker: str
    version: str
    default_model: str
    access: Access
    key_store: KeyStore
    limiter: Limiter
    streaming: Streaming
    queries: QueryService
    explainer: Explainer
    documents: DocumentService
    passages: Retriever
    mcp: McpServer
    embeddings: EmbeddingCalls
    embed_max_inputs: int
    catalog: ModelCatalog
    num_ctx: int | None
    max_num_ctx: int
    pins_options: bool
    generate_context: bool
    admin_passthrough: bool
    breakers: Mapping[str, FleetBreaker]
    bulkheads: Mapping[str, FleetBulkhead]
    pool_report: Callable[[], dict[str, Any]]
    cache_report: Callable[[], Awaitable[dict[str, object]]]
    invalidator: Invalidator
    feedback: Feedback
    quality: Callable[[], QualityState]
    warm_ups: WarmUps | None
    experiments: ExperimentView
    experiment_control: ExperimentControl
    audit: AuditLog
    erase_tenant: Callable[[str, bool], Awaitable[Mapping[str, int]]]
    live_workers: Callable[[], Awaitable[list[dict[str, str]]]]
    remembered_prompts: Callable[[], Awaitable[Mapping[str, int]]]
    history: Callable[[int | None, int | None, int | None, bool], Awaitable[bytes]] | None
    recent: Callable[[], Awaitable[list[dict[str, Any]]]]
    price_per_million_tokens: float | None
    reachability: Reachability
    redis_warnings: Callable[[], Sequence[StoreWarning]]
    exposition: Callable[[str], tuple[bytes, str]]
    recordings: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(RECORDINGS))
    large_bodies: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def breaker(self) -> FleetBreaker:
        """The generate breaker of the first backend."""
        return next(iter(self.breakers.values()))

    @property
    def generation_states(self) -> list[State]:
        """The effective states of the generate breakers, as far as this worker knows, without I/O.

        Those of drained backends do not matter, unless all are drained.
        """
        breakers = [breaker for name, breaker in self.breakers.items() if not name.endswith("-embed")]
        in_use = [breaker for breaker in breakers if not breaker.drained]
        return [breaker.effective_state for breaker in in_use or breakers]

    @property
    def drained(self) -> list[str]:
        """The drained backends, as far as this worker knows, without I/O."""
        return [name for name, breaker in self.breakers.items() if breaker.drained]

    @property
    def all_drained(self) -> bool:
        """Whether every backend is drained, as far as this worker knows, without I/O."""
        return all(breaker.drained for name, breaker in self.breakers.items() if not name.endswith("-embed"))


async def charge_request(request: Request) -> Charge | None:
    """Charges a request other than a question, and returns the charge if there are limits. Raises `RateLimited`.

    The tenant of the request must be known.
    """
    state = worker_state(request)
    charge = state.access.charge(request)
    if charge is not None:
        await state.limiter.settle(charge)
    return charge


def worker_state(request: Request) -> AppState:
    """Returns the state of the worker that handles `request`."""
    state: AppState = request.state.worker
    return state


FRESH_SECONDS: Final = 1.0


class _SharedProbe:
    """One probe for all who ask while it runs and for `fresh` seconds from its start."""

    def __init__(self, ask: Callable[[], Coroutine[Any, Any, bool]], fresh: float) -> None:
        self._ask = ask
        self._fresh = fresh
        self._asked_at = 0.0
        self._answer: asyncio.Task[bool] | None = None

    async def __call__(self) -> bool:
        """The result. Cancelling one caller does not cancel the probe for the others."""
        answered = self._answer is not None and self._answer.done()
        if self._answer is None or (answered and time.monotonic() - self._asked_at > self._fresh):
            self._asked_at = time.monotonic()
            self._answer = asyncio.create_task(self._ask())
            log_failure(self._answer)
        return await asyncio.shield(self._answer)


class Reachability:
    """Probes Redis and Ollama: Ollama at most once a second, Redis each time (a round trip).

    However many callers ask for /health, they share one connection and do not queue.
    """

    def __init__(
        self,
        redis: Callable[[], Coroutine[Any, Any, bool]],
        redis_partly: Callable[[], bool],
        breaker_redis: Callable[[], Coroutine[Any, Any, bool]],
        ollama: Callable[[], Coroutine[Any, Any, bool]],
    ) -> None:
        self._redis = _SharedProbe(redis, 0.0)
        self.redis_partly = redis_partly
        """True if any part of Redis answered the last probe; in a cluster, any shard."""
        self._breaker_redis = _SharedProbe(breaker_redis, 0.0)
        self._ollama = _SharedProbe(ollama, FRESH_SECONDS)

    async def redis(self) -> bool:
        """Returns whether Redis answers and accepts writes."""
        return await self._redis()

    async def breaker_redis(self) -> bool:
        """Returns whether the Redis for breakers and bulkheads answers and accepts writes."""
        return await self._breaker_redis()

    async def ollama(self) -> bool:
        """Returns whether any backend answers."""
        return await self._ollama()


router = APIRouter(route_class=CheckedRoute, prefix="/health", tags=["health"])


class RedisWarningOut(BaseModel):
    """A warning about the configuration of Redis. It has no effect on readiness."""

    store: Store
    name: str
    advice: str


class HealthOut(BaseModel):
    """`database` is Redis, or every shard of a cluster. `ollama` is true if any backend answers.

    `circuit_breaker` is the state of the first breaker. `drained` names the drained backends. `breaker_database` is the
    Redis of breakers and bulkheads, which is the same unless it has its own URL.
    """

    status: Literal["healthy", "degraded", "unhealthy"]
    database: bool
    breaker_database: bool
    ollama: bool
    circuit_breaker: State
    drained: list[str]
    redis_warnings: list[RedisWarningOut]
    version: str
    worker: str


@router.get(
    "", summary="Show the health of the service", responses={503: {"model": HealthOut, "description": "Unhealthy"}}
)
@needs("all")
async def health(request: Request, response: Response) -> HealthOut:
    """503 without Redis and Ollama.

    `degraded` without part of Redis, while the breaker is not CLOSED, or while every backend is drained.
    """
    report = await health_report(worker_state(request))
    if report.status == "unhealthy":
        response.status_code = 503
    return report


async def health_report(worker: AppState) -> HealthOut:
    """Probes Redis and Ollama."""
    reached = worker.reachability
    database, guards, ollama = await asyncio.gather(reached.redis(), reached.breaker_redis(), reached.ollama())
    states = worker.generation_states
    status: Literal["healthy", "degraded", "unhealthy"] = "healthy"
    if not database and not reached.redis_partly() and (not ollama or set(states) == {State.OPEN}):
        status = "unhealthy"
    elif not (database and guards) or set(states) != {State.CLOSED} or worker.all_drained:
        status = "degraded"
    return HealthOut(
        status=status,
        database=database,
        breaker_database=guards,
        ollama=ollama,
        circuit_breaker=worker.breaker.effective_state,
        drained=worker.drained,
        redis_warnings=[RedisWarningOut(**asdict(warning)) for warning in worker.redis_warnings()],
        version=worker.version,
        worker=worker.worker,
    )


@router.get("/live", summary="Liveness probe")
@needs("all")
async def live() -> dict[str, str]:
    """Does no I/O."""
    return {"status": "alive"}


@router.get("/ready", summary="Readiness probe")
@needs("all")
async def ready(request: Request) -> dict[str, str]:
    """503 during start and drain. An outage of Redis or Ollama does not take replicas out of service."""
    if getattr(request.app.state, "draining", False):
        raise ServiceUnavailable("The worker is draining.", retry_after=1)
    return {"status": "ready"}


reports_router = APIRouter(route_class=CheckedRoute, tags=["operations"])

NUMBERS: Final = frozenset({"pid", "requests"})
POOL: Final = "pool_"


@reports_router.get("/api/connection-pool/metrics", summary="Show connections to Ollama")
@needs("operator")
async def pool_metrics(request: Request) -> dict[str, Any]:
    """Figures of this worker. `workers` has those of every live worker; while Redis is down, only this one."""
    state = worker_state(request)
    report = state.pool_report()
    try:
        workers = {worker["id"]: worker_out(worker)["pool"] for worker in await state.live_workers()}
    except StoreUnavailable:
        workers = {}
    return {**report, "worker": state.worker, "workers": workers}


@reports_router.get("/api/workers", summary="List the live workers of every replica")
@needs("operator")
async def workers(request: Request) -> dict[str, Any]:
    """503 while Redis is down."""
    found = await worker_state(request).live_workers()
    return {"workers": [worker_out(worker) for worker in found]}


@reports_router.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
@needs("operator")
async def prometheus(request: Request) -> Response:
    """The sum over the workers of this replica. A separate process serves the same on METRICS_PORT."""
    state, accept = worker_state(request), request.headers.get("accept", "")
    body, content_type = await asyncio.to_thread(state.exposition, accept)
    return Response(body, headers={"Content-Type": content_type})


def worker_out(fields: dict[str, str]) -> dict[str, Any]:
    """Returns a worker's hash as JSON, with numbers as numbers and the pool's figures in an object."""
    plain = {name: value for name, value in fields.items() if not name.startswith(POOL)}
    pool = {name.removeprefix(POOL): _number(value) for name, value in fields.items() if name.startswith(POOL)}
    return {**{name: int(value) if name in NUMBERS else value for name, value in plain.items()}, "pool": pool}


def _number(text: str) -> float | int | str:
    """Returns text that is not a number unchanged, because workers of a later release may report more."""
    with suppress(ValueError):
        return float(text) if "." in text else int(text)
    return text


# -- history -----------------------------------------------------------------------------------------------------------

history_router = APIRouter(route_class=CheckedRoute, tags=["operations"])

_NUMBER: Final = re.compile(r"\d{1,13}(\.\d{1,9})?")
_MILLISECONDS: Final = 100_000_000_000
"""Numbers from here on are milliseconds: as seconds they would be beyond the year 5000."""
LAST_MS: Final = 253_402_300_799_999
"""The end of the year 9999."""
MAX_STEP: Final = 86_400


def _moment(given: Any) -> Any:
    """Converts RFC 3339, seconds or milliseconds since 1970 to milliseconds. A time without a zone is UTC."""
    if isinstance(given, int | float) and not isinstance(given, bool):  # of a body
        given = f"{given:f}"
    if isinstance(given, str) and _NUMBER.fullmatch(given):
        number = float(given)
        return round(number if number >= _MILLISECONDS else number * 1000)
    try:
        found = datetime.fromisoformat(given.replace(" ", "+"))  # a `+` that was not written as %2B
    except (ValueError, AttributeError):
        raise ValueError("must be an RFC 3339 time, such as 2026-11-28T15:00:00Z, or seconds since 1970") from None
    zoned = found if found.tzinfo else found.replace(tzinfo=UTC)
    return max(0, min(LAST_MS, round(zoned.timestamp() * 1000)))


def _step(given: Any) -> Any:
    """Accepts a multiple of 60 up to a day."""
    if not (isinstance(given, str) and re.fullmatch(r"\d{1,5}", given)) or int(given) % 60 or not int(given):
        raise ValueError("must be a multiple of 60 seconds")
    if int(given) > MAX_STEP:
        raise ValueError(f"must be at most {MAX_STEP} seconds")
    return int(given)


_MOMENTS: Final = [
    {"type": "string", "format": "date-time"},
    {"type": "number", "minimum": 0, "maximum": 9_999_999_999_999},
]
Moment = Annotated[int, BeforeValidator(_moment), WithJsonSchema({"anyOf": _MOMENTS})]
_STEPS: Final = {"type": "integer", "minimum": 60, "maximum": MAX_STEP, "multipleOf": 60}
Step = Annotated[int, BeforeValidator(_step), WithJsonSchema(_STEPS)]


@history_router.get("/api/history", summary="Show the fleet's figures by minute", response_class=Response)
@needs("operator")
async def history(
    request: Request,
    from_: Annotated[Moment | None, Query(alias="from")] = None,
    to: Annotated[Moment | None, Query()] = None,
    step: Annotated[Step | None, Query()] = None,
    buckets: Annotated[bool, Query()] = False,
) -> Response:
    """The last hour by default. A range has at most 1,440 steps. `buckets` adds the counts behind the latencies.

    503 while Redis is down, 404 with `HISTORY_ENABLED=false`.
    """
    read = worker_state(request).history
    if read is None:
        raise NotFound("The history is off: HISTORY_ENABLED=false.")
    return Response(await read(from_, to, step, buckets), media_type="application/json")
