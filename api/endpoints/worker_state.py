"""What the lifespan opens and every endpoint reads: `request.state.worker`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.requests import Request

from api.backends.embedder import EmbeddingCalls
from api.breaker.fleet_breaker import FleetBreaker
from api.breaker.state import State
from api.bulkhead.fleet_bulkhead import FleetBulkhead
from api.endpoints.access import Access
from api.endpoints.streaming import Streaming
from api.knowledge.document_service import DocumentService
from api.ports.cache import StoreChecks
from api.query.explain import Explainer
from api.query.invalidate import Invalidator
from api.query.service import QueryService
from api.query.warm_up import WarmUps


class PoolReport(Protocol):
    """This worker's connections to Ollama, in the contract's field names."""

    def report(self) -> dict[str, object]: ...


class CacheReport(Protocol):
    """The fleet's cache, in the contract's field names."""

    async def report(self) -> dict[str, object]: ...


class FleetReport(Protocol):
    """The live workers of every replica. Raises `StoreUnavailable`."""

    async def live(self) -> list[dict[str, str]]: ...


class Reachability(Protocol):
    """Whether Redis and Ollama can be used now; answers within a second or so."""

    async def redis(self) -> bool: ...

    def redis_partly(self) -> bool: ...

    async def breaker_redis(self) -> bool: ...

    async def ollama(self) -> bool: ...


class ModelCatalog(Protocol):
    """What Ollama says of its models, in its own words, of all backends together. Raises `UpstreamError`."""

    async def available(self) -> list[dict[str, Any]]: ...

    async def in_memory(self) -> list[dict[str, Any]]: ...

    async def version(self) -> str: ...

    async def show(self, model: str, *, verbose: bool) -> dict[str, Any]: ...


class Exposition(Protocol):
    """Prometheus' text, in the format that an `Accept` header asks for: body and content type."""

    def exposition(self, accept: str) -> tuple[bytes, str]: ...


@dataclass(frozen=True, slots=True)
class AppState:
    """One worker's open resources, by what endpoints need of them. Breakers, bulkheads: the first backend's first.

    `warm_ups` is None where the cache is switched off. `num_ctx`: the context in tokens that all generations have;
    None: the model's own.
    """

    worker: str
    version: str
    default_model: str
    access: Access
    streaming: Streaming
    queries: QueryService
    explainer: Explainer
    library: DocumentService
    embeddings: EmbeddingCalls
    embed_max_inputs: int
    catalog: ModelCatalog
    num_ctx: int | None
    breakers: Mapping[str, FleetBreaker]
    bulkheads: Mapping[str, FleetBulkhead]
    pool: PoolReport
    cache: CacheReport
    invalidator: Invalidator
    warm_ups: WarmUps | None
    fleet: FleetReport
    reachability: Reachability
    stores: StoreChecks
    metrics: Exposition

    @property
    def breaker(self) -> FleetBreaker:
        """The generate breaker of the first backend."""
        return next(iter(self.breakers.values()))

    @property
    def generation_states(self) -> list[State]:
        """Where the generate breaker of each backend stands for calls, as far as this worker knows; no I/O."""
        breakers = self.breakers.items()
        return [breaker.effective_state for name, breaker in breakers if not name.endswith("-embed")]


def worker_state(request: Request) -> AppState:
    """The state of the worker that answers `request`."""
    state: AppState = request.state.worker
    return state
