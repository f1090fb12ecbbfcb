"""Facts that a worker reports about itself and its backends.

The fleet gets them at each heartbeat, Prometheus every second, and operators on request.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

from api.breaker.fleet_breaker import FleetBreaker
from api.bulkhead.fleet_bulkhead import FleetBulkhead
from api.observability.metric_series import STATES
from api.observability.metrics import Metrics, OllamaGrowth
from api.ports.answer_cache import StoreMemory, StoreWarning
from api.ports.answer_quality import QualityState
from api.values import BackendHealth

if TYPE_CHECKING:
    from api.observability.worker_telemetry import WorkerTelemetry
    from api.ollama.pool import OllamaPools

MEASURE_SECONDS: Final = 1.0
FLEET_POOL_FIELDS: Final = (
    "active",
    "idle",
    "waiting",
    "requests",
    "connections_opened",
    "connections_reused",
    "reuse_rate",
    "pool_timeouts",
)


class RedisState(Protocol):
    """A worker's view of its Redis servers; no I/O."""

    @property
    def warnings(self) -> Sequence[StoreWarning]: ...

    @property
    def memory(self) -> Sequence[StoreMemory]: ...

    @property
    def main_is_up(self) -> bool: ...

    @property
    def main_shards(self) -> tuple[int, int]: ...

    @property
    def breaker_is_up(self) -> bool: ...


class NearCacheState(Protocol):
    """A worker's copies of exact entries. `hits` since it started; `size` in bytes."""

    hits: int
    is_tracking: bool

    @property
    def size(self) -> int: ...


class WorkerFacts:
    """Reads one worker's pools, breakers, bulkheads and Redis state."""

    def __init__(
        self,
        worker: str,
        version: str,
        backends: BackendFacts,
        breakers: Mapping[str, FleetBreaker],
        bulkheads: Mapping[str, FleetBulkhead],
        redis: RedisState,
        queries: WorkerTelemetry,
        metrics: Metrics,
        schema: str,
        quality: Callable[[], QualityState],
        near: NearCacheState | None = None,
    ) -> None:
        self._fixed = {
            "id": worker,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": version,
            "schema": schema,
            "started": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        }
        self._backends = backends
        self._breakers = breakers
        self._bulkheads = bulkheads
        self._redis = redis
        self._queries = queries
        self._metrics = metrics
        self._quality = quality
        self._near = near
        self._counted = {"connections_opened": 0, "requests": 0, "pool_timeouts": 0, "near_hits": 0}

    def fields(self) -> Mapping[str, Any]:
        """The fields of `rag:worker:<id>`."""
        pool = asdict(self._backends.snapshot())
        return {
            **self._fixed,
            "requests": self._queries.requests,
            **{f"pool_{name}": pool[name] for name in FLEET_POOL_FIELDS},
        }

    def report(self) -> dict[str, object]:
        """All pools of this worker together, and each under `backends`."""
        return {**asdict(self._backends.snapshot()), "backends": self._backends.report()}

    async def keep_measuring(self) -> None:
        """Sets the gauges until cancelled, as a background task."""
        while True:
            self.measure()
            await asyncio.sleep(MEASURE_SECONDS)

    def measure(self) -> None:
        """Sets the gauges, and counts what happened since the last call. Called once more when the worker ends."""
        pool = self._backends.snapshot()
        self._backends.measure()
        self._metrics.redis_is(up=self._redis.main_is_up, breaker_up=self._redis.breaker_is_up)
        self._metrics.redis_shards_are(*self._redis.main_shards)
        self._metrics.redis_warnings(self._redis.warnings)
        self._metrics.redis_memory_is(self._redis.memory)
        self._metrics.quality_is(self._quality())
        if (near := self._near) is not None:
            hits = self._since("near_hits", near.hits)
            self._metrics.near_cache_is(hits, near.size, tracking=near.is_tracking)
        self._metrics.pool_is(active=pool.active, idle=pool.idle, waiting=pool.waiting)
        self._metrics.pool_opened(self._since("connections_opened", pool.connections_opened))
        self._metrics.pool_request(self._since("requests", pool.requests))
        self._metrics.pool_timeout(self._since("pool_timeouts", pool.pool_timeouts))
        for name, bulkhead in self._bulkheads.items():
            local = bulkhead.store_name == "local"
            waiting = bulkhead.waiting_by_priority
            self._metrics.bulkhead_is(name, in_use=bulkhead.in_use, waiting=waiting, local=local)
        for name, breaker in self._breakers.items():
            self._metrics.breakers.state(name, STATES[breaker.view.position.state])
            self._metrics.breakers.store(name, local=breaker.store_name == "local")
            if breaker.view.reading is not None:
                reading = breaker.view.reading
                self._metrics.breakers.rates(name, failure=reading.failure_rate, slow=reading.slow_rate)

    def _since(self, name: str, total: int) -> int:
        """The growth of a total since the last measurement."""
        grown, self._counted[name] = total - self._counted[name], total
        return grown


class Place(Protocol):
    """A backend's entry of OLLAMA_BASE_URL; `address` is its URL without credentials."""

    @property
    def address(self) -> str: ...

    @property
    def tier(self) -> int: ...

    @property
    def weight(self) -> int: ...


class BackendFacts:
    """Reads one worker's pools and the health of their backends."""

    def __init__(
        self,
        pools: OllamaPools,
        health: Callable[[str], BackendHealth | None],
        metrics: Metrics,
        places: Mapping[str, Place],
        is_drained: Callable[[str], bool],
    ) -> None:
        self._pools = pools
        self._health = health
        self._metrics = metrics
        self._places = places
        self._is_drained = is_drained
        self._counted: dict[tuple[str, str], float] = {}

    def snapshot(self) -> Any:
        """All pools together."""
        return self._pools.snapshot()

    def report(self) -> dict[str, object]:
        """Returns for each backend its pool, Ollama's own figures, and the result of the last probe."""
        return {name: {**asdict(pool), **self._found(name)} for name, pool in self._pools.by_backend().items()}

    def _found(self, name: str) -> dict[str, object]:
        health, place = self._health(name), self._places[name]
        return {
            "url": place.address,
            "tier": place.tier,
            "weight": place.weight,
            "drained": self._is_drained(name),
            "reachable": None if health is None else health.reachable,
            "models": [] if health is None else sorted(health.models),
            "resident": [] if health is None else sorted(health.resident),
        }

    def measure(self) -> None:
        """Adds the growth to the metrics."""
        self._metrics.retried(int(self._since("", "retries", self._pools.retries.retried)))
        for name, pool in self._pools.by_backend().items():
            health = self._health(name)
            if health is not None:
                self._metrics.backend_is(name, up=health.reachable)
            self._metrics.backend_drained(name, drained=self._is_drained(name))
            self._metrics.ollama_worked(name, self._growth(name, pool.ollama))

    def _growth(self, name: str, now: Any) -> OllamaGrowth:
        def grown(field: str) -> Any:
            return self._since(name, field, getattr(now, field))

        return OllamaGrowth(
            generations=grown("generations"),
            seconds={phase: grown(f"{phase}_seconds") for phase in ("load", "prompt", "generation")},
            tokens={direction: grown(f"{direction}_tokens") for direction in ("prompt", "completion")},
            tokens_per_second=now.tokens_per_second,
        )

    def _since(self, name: str, field: str, total: float) -> float:
        """The growth of a total since the last measurement."""
        grown = total - self._counted.get((name, field), 0)
        self._counted[name, field] = total
        return max(0, grown)


TICK: Final = 0.1
"""Seconds between two samples. A block of T seconds is measured as T - 0.1 to T; shorter ones are sampled."""

TICKS_PER_COUNT: Final = 50
"""Samples of the lag for each count of the tasks, which takes longer the more there are."""

BUSY: Final = 0.05
"""Seconds of delay from which a worker is busy: twenty times that of an idle one."""


class LoopLag:
    """Measures how late the event loop runs: a late worker answers nobody, health checks included."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._late = 0.0

    @property
    def is_busy(self) -> bool:
        """True if the event loop was late at one of the last samples. Background work should wait."""
        return self._late >= BUSY

    async def keep_measuring(self) -> None:
        """Observes the lag, and from time to time how many tasks there are, until cancelled, as a background task."""
        loop = asyncio.get_running_loop()
        for tick in itertools.count():
            if not tick % TICKS_PER_COUNT:
                self._metrics.tasks_are(len(asyncio.all_tasks(loop)))
            due = loop.time() + TICK
            await asyncio.sleep(TICK)
            late = max(0.0, loop.time() - due)
            self._late = max(late, self._late / 2)
            self._metrics.loop_was_late(late)
