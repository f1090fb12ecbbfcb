"""The worker's resources, which the lifespan opens and every endpoint reads from `request.state.worker`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.requests import Request

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from api.backends.embedder import EmbeddingCalls
    from api.breaker.fleet_breaker import FleetBreaker
    from api.breaker.state import State
    from api.bulkhead.fleet_bulkhead import FleetBulkhead
    from api.endpoints.access import Access
    from api.endpoints.health import Reachability
    from api.endpoints.streaming import Streaming
    from api.knowledge.document_service import DocumentService
    from api.ports.answer_cache import Feedback, StoreWarning
    from api.ports.inference import ModelCatalog
    from api.ports.quality import QualityState
    from api.query.explain import Explainer
    from api.query.invalidate import Invalidator
    from api.query.service import QueryService
    from api.query.warm_up import WarmUps


@dataclass(frozen=True, slots=True)
class AppState:
    """One worker's open resources. Breakers and bulkheads begin with those of the first backend.

    `warm_ups` is None if the cache is disabled. `num_ctx` is the context size in tokens for all generations, or None
    for each model's default. `cache_report` and `live_workers` raise `StoreUnavailable`. `exposition` takes an `Accept`
    header and returns the metrics' text and content type.
    """

    worker: str
    version: str
    default_model: str
    access: Access
    streaming: Streaming
    queries: QueryService
    explainer: Explainer
    documents: DocumentService
    embeddings: EmbeddingCalls
    embed_max_inputs: int
    catalog: ModelCatalog
    num_ctx: int | None
    breakers: Mapping[str, FleetBreaker]
    bulkheads: Mapping[str, FleetBulkhead]
    pool_report: Callable[[], dict[str, object]]
    cache_report: Callable[[], Awaitable[dict[str, object]]]
    invalidator: Invalidator
    feedback: Feedback
    quality: Callable[[], QualityState]
    warm_ups: WarmUps | None
    live_workers: Callable[[], Awaitable[list[dict[str, str]]]]
    reachability: Reachability
    redis_warnings: Callable[[], Sequence[StoreWarning]]
    exposition: Callable[[str], tuple[bytes, str]]

    @property
    def breaker(self) -> FleetBreaker:
        """The generate breaker of the first backend."""
        return next(iter(self.breakers.values()))

    @property
    def generation_states(self) -> list[State]:
        """The effective state of each backend's generate breaker, as far as this worker knows, without I/O."""
        breakers = self.breakers.items()
        return [breaker.effective_state for name, breaker in breakers if not name.endswith("-embed")]


def worker_state(request: Request) -> AppState:
    """Returns the state of the worker that handles `request`."""
    state: AppState = request.state.worker
    return state
