"""Measures the server cost of each Redis operation of a worker, through the service's own adapters.

`every`: seconds between two of them in an idle worker, from the service's constants; None for operations that a request
causes. Shared operations are those that any worker of the fleet may do.
"""

from __future__ import annotations

import asyncio
import socket
import statistics
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from itertools import count
from typing import Any, Final

from redis.asyncio import Redis

from api.breaker.fleet_breaker import COALESCE_SECONDS, POLL_SECONDS
from api.breaker.state import BreakerPolicy, CallOutcome
from api.bulkhead.bulkhead_rules import BulkheadPolicy, PermitReturn
from api.knowledge.ingestion_worker import LOOK_SECONDS as DOCUMENTS_SECONDS
from api.query.warm_up import LOOK_SECONDS as WARM_UPS_SECONDS
from api.redis_store.client import RedisAddress, blocking_reader, short_commands
from api.redis_store.health_gated import WATCH_SECONDS, HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.scripts import IDLE_SECONDS
from api.redis_store.stores.backend_health import BackendHealthStore
from api.redis_store.stores.breaker import BLOCK_SECONDS, RedisBreakerStore
from api.redis_store.stores.bulkhead import RedisBulkheadStore
from api.redis_store.stores.cache.index_keeper import MAINTAIN_SECONDS, RENEW_SECONDS, IndexKeeper
from api.redis_store.stores.cache.semantic_index import SemanticIndexes
from api.redis_store.stores.cache.warm_up_jobs import RedisWarmUpJobs
from api.redis_store.stores.documents.embeddings import RedisReembedding
from api.redis_store.stores.documents.passages import RedisPassageIndex
from api.redis_store.stores.documents.work import RedisDocumentWork
from api.redis_store.stores.fleet import (
    FLUSH_SECONDS,
    HEARTBEAT_SECONDS,
    SYNC_SECONDS,
    CacheCounters,
    FleetRetries,
    RedisLeaderLease,
    WorkerRegistry,
)
from api.redis_store.stores.flights import RedisFlightStore
from api.settings import OllamaSettings
from api.values import EmbedderIdentity, FlightKey, Priority
from scripts.costs.server import CONCURRENCY, Server, Work, cost_of

BACKEND: Final = "ollama"
EMBEDDER: Final = EmbedderIdentity("costs", 384, "costscosts")
FOLLOWERS: Final = 200
TRANSITIONS: Final = 20
LISTED: Final = 500
"""Workers in the list that GET /api/workers returns."""

FACTS: Final[Mapping[str, str | float]] = {
    "host": "ragherd-7c9f8b6d5-abcde",
    "pid": 12345,
    "version": "0.1.0",
    "started": "2026-01-01T00:00:00Z",
    "requests": 123456,
    **{f"pool_{name}": 12 for name in ("active", "idle", "waiting", "requests", "connections_opened")},
    **{f"pool_{name}": 12 for name in ("connections_reused", "pool_timeouts")},
    "pool_reuse_rate": 0.99,
}


class _Budget:
    """A retry budget that always has something to report."""

    def take_unsent(self) -> tuple[int, int]:
        return 3, 0

    def fleet_is(self, calls: int, retries: int) -> None:
        """Ignores the report."""

    def fleet_is_unknown(self) -> None:
        """Ignores the report."""


class Operations:
    """The adapters of one worker of a fleet, without its background tasks."""

    def __init__(self, gate: HealthGatedRedis, address: RedisAddress, number: int) -> None:
        keys, self.gate, reader = Keys(), gate, partial(blocking_reader, address)
        self.worker = worker = f"host-1234-{number:06x}"
        self.keys = keys
        indexes = SemanticIndexes(gate, keys)
        self.index = indexes.of("")
        self.breaker = RedisBreakerStore(gate, reader, keys, BACKEND, BreakerPolicy(), worker)
        self.bulkhead = RedisBulkheadStore(gate, reader, keys, BACKEND, BulkheadPolicy(10_000, 64, 30.0), worker)
        self.flights = RedisFlightStore(gate, reader, keys, worker)
        self.registry = WorkerRegistry(gate, keys, worker, lambda: FACTS)
        self.counters = CacheCounters(gate, keys, worker)
        self.retries = FleetRetries(gate, keys, _Budget())
        self.passages = RedisPassageIndex(gate, keys)
        self.prober = RedisLeaderLease(gate, keys.prober, worker)
        self.board = BackendHealthStore(gate, keys, {BACKEND: "http://ollama:11434"}, worker)
        self.janitor = RedisLeaderLease(gate, keys.janitor, worker)
        self.keeper = IndexKeeper(gate, indexes, self.janitor)
        self._number = count(number << 64)  # no two workers have a flight in common
        self._epoch = 0

    async def counters_flush(self) -> None:
        """Counts what a busy worker counts in a quarter of a second, and touches a cache entry."""
        for name in ("exact_hits", "semantic_hits", "misses", "stores"):
            self.counters.add(name, 2)
        await self.counters.flush()

    async def touch(self) -> None:
        self.counters.touch(self.keys.cache_entry("costscosts-0", "0" * 32))
        await self.counters.flush()

    async def permit(self) -> None:
        """Acquires and releases a permit: two round trips."""
        taken = await self.bulkhead.take(Priority.USER, "")
        await self.bulkhead.give([PermitReturn(taken.ticket, 100)])

    async def flight(self) -> None:
        """Starts and ends a flight: two round trips."""
        key = FlightKey("costscosts-0", f"{next(self._number):032x}")
        joined = await self.flights.join(key, 1, 0)
        await self.flights.end(key, joined.fence, '{"landed": true}' + " " * 500)

    async def backend_look(self) -> None:
        """Reads backend health as a worker that does not hold the prober lease."""
        await self.prober.acquire(60)
        await self.board.read()
        await self.board.digests(BACKEND)

    async def breaker_report(self) -> None:
        """Reports the successes of a quarter of a second."""
        self._epoch = self._epoch or (await self.breaker.read()).breaker.epoch
        await self.breaker.record(self._epoch, "", [CallOutcome.OK] * 3, 0)

    async def index_renew(self) -> None:
        """Renews the index as a worker that does not hold the janitor lease."""
        await self.keeper.renew()
        await self.janitor.acquire(2 * RENEW_SECONDS)

    def all(self) -> dict[str, tuple[Work, float | None, bool]]:
        """Returns each operation by name: the call, `every`, and whether it is shared."""
        work = RedisDocumentWork(self.gate, self.keys, self.worker, ())
        reembedding = RedisReembedding(self.gate, self.keys, self.worker)
        jobs = RedisWarmUpJobs(self.gate, self.keys, self.worker)
        probe = OllamaSettings(_env_file=None).ollama_probe_interval
        return {
            f"list_{LISTED}_workers": (self.registry.live, None, False),
            "heartbeat": (self.registry.heartbeat, HEARTBEAT_SECONDS, False),
            "breaker_poll": (self.breaker.read, POLL_SECONDS, False),
            "gate_ping": (self.gate.check, WATCH_SECONDS, False),
            "index_look": (self.index.maintain, MAINTAIN_SECONDS, True),
            "warm_up_look": (jobs.unfinished, WARM_UPS_SECONDS, True),
            "document_look": (lambda: work.waiting(32, gone=False), DOCUMENTS_SECONDS, True),
            "deletion_look": (lambda: work.waiting(32, gone=True), DOCUMENTS_SECONDS, True),
            "embedding_look": (lambda: reembedding.behind(EMBEDDER), DOCUMENTS_SECONDS, True),
            "index_renew": (self.index_renew, RENEW_SECONDS, False),
            "backend_look": (self.backend_look, 0.9 * probe, False),
            "counters_flush": (self.counters_flush, None, False),
            "touch": (self.touch, None, False),
            "breaker_report": (self.breaker_report, None, False),
            "retries_sync": (self.retries.sync, None, False),
            "flight": (self.flight, None, False),
            "permit": (self.permit, None, False),
            "corpus": (lambda: self.passages.corpus(""), None, False),
        }


@asynccontextmanager
async def opened(url: str, number: int) -> AsyncIterator[Operations]:
    """Opens the adapters of the worker with this number on a server."""
    address = RedisAddress(url, timeout=10.0, connect_timeout=10.0, max_connections=64)
    async with short_commands(address) as client:
        gate = HealthGatedRedis(client, 64)
        assert await gate.check()
        yield Operations(gate, address, number)


async def measure(url: str, server: Server) -> dict[str, dict[str, Any]]:
    """Measures the cost of every operation."""
    found = {}
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(opened(url, number)) for number in range(CONCURRENCY)]
        for worker in workers:
            await worker.index.ensure(EMBEDDER)
        operations = workers[0]
        for lease in (operations.keys.prober, operations.keys.janitor):
            await RedisLeaderLease(operations.gate, lease, "other").acquire(3600)
        await operations.board.publish_digests(BACKEND, {"llama3.2": "sha256:5eed"})
        await _register(operations)
        works = [worker.all() for worker in workers]
        for name, (_, every, is_shared) in works[0].items():
            times = 100 if name.startswith("list") else 3000
            cost = await cost_of(server, [one[name][0] for one in works], times)
            found[name] = {**cost, "every": every, "look": is_shared}
        waits = [partial(_read_log, worker) for worker in workers]
        found["breaker_follow"] = {**await cost_of(server, waits, 1000), "every": BLOCK_SECONDS}
        pings = [worker.gate.client.ping for worker in workers]
        found["channel_ping"] = {**await cost_of(server, pings), "every": IDLE_SECONDS}
    for name in ("breaker_follow", "channel_ping"):
        found[name]["look"] = False
    return found


async def _register(operations: Operations) -> None:
    """Registers many other workers, for the report to list."""
    async with operations.gate.client.pipeline(transaction=False) as pipe:
        for number in range(LISTED - CONCURRENCY):
            facts: dict[Any, Any] = {"id": f"other{number}", **FACTS}
            pipe.hset(operations.keys.worker(f"other{number}"), mapping=facts)
            pipe.zadd(operations.keys.workers, {f"other{number}": 1e14})
        await pipe.execute()


def coalescing() -> dict[str, float]:
    """Returns the seconds for which a worker collects events before it sends them together."""
    return {"counters_flush": FLUSH_SECONDS, "breaker_report": COALESCE_SECONDS, "retries_sync": SYNC_SECONDS}


async def _read_log(operations: Operations) -> None:
    """Waits for the breaker's log until the wait times out."""
    await operations.gate.client.xread({operations.keys.breaker(BACKEND)[3]: "$"}, block=1)


async def cost_of_a_wake(url: str, server: Server) -> dict[str, Any]:
    """Measures the server cost of a transition per follower: the reply, and the follower's next XREAD."""
    log, client = Keys().breaker(BACKEND)[3], Redis.from_url(url)
    await client.xadd(log, {"from": "CLOSED"})
    followers = [_Follower(url, log) for _ in range(FOLLOWERS)]
    spent = []
    for _ in range(TRANSITIONS):
        before = server.sample()
        await client.xadd(log, {"from": "CLOSED", "to": "OPEN", "reason": "x" * 20, "by": "w" * 20, "at_ms": 1})
        for follower in followers:
            follower.read_and_follow()
        spent.append(server.since(before).cpu_us / FOLLOWERS)
    await client.aclose()
    return {"server_us": round(statistics.median(spent), 1), "followers": FOLLOWERS}


class _Follower:
    """One blocked XREAD on a raw socket. Without a client's overhead, hundreds of them are fast."""

    def __init__(self, url: str, log: str) -> None:
        host, port = url.removeprefix("redis://").split(":")
        self._socket = socket.create_connection((host, int(port)))
        self._command = f"XREAD BLOCK 60000 STREAMS {log} $\r\n".encode()
        self._follow()

    def read_and_follow(self) -> None:
        data = self._socket.recv(65536)
        assert b"CLOSED" in data, data
        self._follow()

    def _follow(self) -> None:
        self._socket.sendall(self._command)


def run(url: str, server: Server) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Measures the operations, and the wake-up of a follower."""
    found = asyncio.run(measure(url, server))
    return found, asyncio.run(cost_of_a_wake(url, server))
