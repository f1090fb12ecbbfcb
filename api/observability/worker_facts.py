"""What a worker says of itself: to the fleet at each heartbeat, to Prometheus each second, to operators on demand.

What a worker says of its backends, one by one: to Prometheus each second, to operators on demand.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

from api.breaker.fleet_breaker import FleetBreaker
from api.bulkhead.fleet_bulkhead import FleetBulkhead
from api.observability.listeners import STATES
from api.observability.metrics import Metrics, OllamaGrowth
from api.ports.cache import StoreWarning
from api.values import BackendHealth

if TYPE_CHECKING:
    from api.observability.telemetry import WorkerTelemetry
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
    """What a worker knows of its Redis servers; no I/O."""

    @property
    def warnings(self) -> Sequence[StoreWarning]: ...

    @property
    def main_is_up(self) -> bool: ...

    @property
    def main_shards(self) -> tuple[int, int]: ...

    @property
    def breaker_is_up(self) -> bool: ...


class WorkerFacts:
    """Reads the pools, the breakers, the bulkheads and what is known of Redis, of one worker."""

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
        self._counted = {"connections_opened": 0, "requests": 0, "pool_timeouts": 0}

    def fields(self) -> Mapping[str, Any]:
        """The fields of `rag:worker:<id>`."""
        pool = asdict(self._backends.snapshot())
        return {
            **self._fixed,
            "requests": self._queries.requests,
            **{f"pool_{name}": pool[name] for name in FLEET_POOL_FIELDS},
        }

    def report(self) -> dict[str, object]:
        """This worker's pools together in the contract's field names, and each under `backends`."""
        return {**asdict(self._backends.snapshot()), "backends": self._backends.report()}

    async def keep_measuring(self) -> None:
        """Sets the gauges for ever. A task of the worker's."""
        while True:
            self._measure()
            await asyncio.sleep(MEASURE_SECONDS)

    def _measure(self) -> None:
        pool = self._backends.snapshot()
        self._backends.measure()
        self._metrics.redis_is(up=self._redis.main_is_up, breaker_up=self._redis.breaker_is_up)
        self._metrics.redis_shards_are(*self._redis.main_shards)
        self._metrics.redis_warnings(self._redis.warnings)
        self._metrics.pool_is(active=pool.active, idle=pool.idle, waiting=pool.waiting)
        self._metrics.pool_opened(self._since("connections_opened", pool.connections_opened))
        self._metrics.pool_request(self._since("requests", pool.requests))
        self._metrics.pool_timeout(self._since("pool_timeouts", pool.pool_timeouts))
        for name, bulkhead in self._bulkheads.items():
            local = bulkhead.store_name == "local"
            self._metrics.bulkhead_is(name, in_use=bulkhead.in_use, waiting=bulkhead.waiting, local=local)
        for name, breaker in self._breakers.items():
            self._metrics.breakers.state(name, STATES[breaker.view.position.state])
            self._metrics.breakers.store(name, local=breaker.store_name == "local")
            if breaker.view.reading is not None:
                reading = breaker.view.reading
                self._metrics.breakers.rates(name, failure=reading.failure_rate, slow=reading.slow_rate)

    def _since(self, name: str, total: int) -> int:
        """How much a total has grown since the last measurement."""
        grown, self._counted[name] = total - self._counted[name], total
        return grown


class BackendFacts:
    """Reads the pools of one worker, and what is known of the health of their backends."""

    def __init__(
        self,
        pools: OllamaPools,
        health: Callable[[str], BackendHealth | None],
        metrics: Metrics,
    ) -> None:
        self._pools = pools
        self._health = health
        self._metrics = metrics
        self._counted: dict[tuple[str, str], float] = {}

    def snapshot(self) -> Any:
        """The pools of all backends together."""
        return self._pools.snapshot()

    def report(self) -> dict[str, object]:
        """By backend: its pool in the contract's field names, Ollama's own figures, and what the last probe found."""
        return {name: {**asdict(pool), **self._found(name)} for name, pool in self._pools.by_backend().items()}

    def _found(self, name: str) -> dict[str, object]:
        health = self._health(name)
        return {
            "reachable": None if health is None else health.reachable,
            "models": [] if health is None else sorted(health.models),
            "resident": [] if health is None else sorted(health.resident),
        }

    def measure(self) -> None:
        """Passes on to Prometheus what has grown."""
        self._metrics.retried(int(self._since("", "retries", self._pools.retries.retried)))
        for name, pool in self._pools.by_backend().items():
            health = self._health(name)
            if health is not None:
                self._metrics.backend_is(name, up=health.reachable)
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
        """How much a total has grown since the last measurement."""
        grown = total - self._counted.get((name, field), 0)
        self._counted[name, field] = total
        return max(0, grown)


TICK: Final = 0.1
"""Seconds between two looks. A block of T seconds is seen as between T - 0.1 and T; shorter ones are sampled."""


class LoopLag:
    """Of the worker's event loop."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def keep_measuring(self) -> None:
        """Observes the lag for ever. A task of the worker's."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + TICK
            await asyncio.sleep(TICK)
            self._metrics.loop_was_late(max(0.0, loop.time() - due))
