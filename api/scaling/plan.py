"""The cost model: the resources that a fleet needs for its load, and the resource that it exhausts first.

Combines the measured costs of Redis operations with closed-form queueing theory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from api.scaling.costs import Cost, Costs


@dataclass(frozen=True, slots=True)
class Demand:
    """The load of a fleet and the fleet's size. Raises `ValueError` for impossible values.

    `rate`: requests per second. `exact`, `semantic`: shares of requests that hit that cache tier. `refresh`: share of
    hits whose answer has expired and is regenerated in the background. An answer of `answer_tokens` arrives at
    `tokens_per_second` from one of the `slots` of a GPU, after `first_token` seconds.
    """

    rate: float
    exact: float = 0.3
    semantic: float = 0.2
    refresh: float = 0.0
    entries: int = 1000
    chunks: int = 0
    replicas: int = 2
    workers: int = 4
    backends: int = 1
    embeds_on_ollama: bool = False
    answer_tokens: int = 250
    tokens_per_second: float = 40.0
    first_token: float = 0.5
    slots: int = 4

    def __post_init__(self) -> None:
        shares = {"exact": self.exact, "semantic": self.semantic, "refresh": self.refresh}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name}: must be between 0 and 1, not {share}")
        if self.exact + self.semantic > 1:
            raise ValueError("exact and semantic: must not add up to more than 1")
        for name in ("rate", "entries", "chunks", "first_token"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: must be a number, at least 0")
        for name in ("replicas", "workers", "backends", "answer_tokens", "tokens_per_second", "slots"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: must be a number above 0")

    @property
    def fleet(self) -> int:
        """Workers in all replicas."""
        return self.replicas * self.workers

    @property
    def breakers(self) -> int:
        """Breakers of the fleet. There are as many bulkheads."""
        return self.backends * (2 if self.embeds_on_ollama else 1)

    @property
    def hits(self) -> float:
        """Answers per second from the cache."""
        return self.rate * (self.exact + self.semantic)

    @property
    def misses(self) -> float:
        """Requests per second that wait for Ollama."""
        return max(0.0, self.rate - self.hits)

    @property
    def generations(self) -> float:
        """Answers per second that Ollama generates."""
        return self.misses + self.hits * self.refresh

    @property
    def answer_bytes(self) -> float:
        """Bytes of an answer: English has about 4.5 bytes per token."""
        return 4.5 * self.answer_tokens

    @property
    def generation_seconds(self) -> float:
        """Seconds that one answer occupies a slot."""
        return self.first_token + self.answer_tokens / self.tokens_per_second


@dataclass(frozen=True, slots=True)
class Capacity:
    """The available resources. Raises `ValueError` for impossible values.

    Shares limit the average utilization and leave room for bursts. `max_connections`: REDIS_MAX_CONNECTIONS, per
    worker. `maxclients`: the limit of Redis. `gpus` None: as many as needed, without a limit. `memory_factor`:
    fragmentation and the copy-on-write memory of an append-only file rewrite.
    """

    redis_share: float = 0.7
    worker_share: float = 0.7
    gpu_share: float = 0.8
    maxclients: int = 10_000
    max_connections: int = 64
    redis_bytes: float = 8 * 2**30
    network_gbit: float = 10.0
    gpus: int | None = None
    memory_factor: float = 1.5
    redis_empty_bytes: float = 16 * 2**20

    def __post_init__(self) -> None:
        for name in ("redis_share", "worker_share", "gpu_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}: must be above 0 and at most 1")
        for name in ("maxclients", "max_connections", "redis_bytes", "network_gbit"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: must be a number above 0")
        if self.gpus is not None and self.gpus < 1:
            raise ValueError("gpus: must be at least 1")


@dataclass(frozen=True, slots=True)
class Limit:
    """The use of one resource. `used` 1.0 is its allowed share. `moved_by`: how to raise the limit."""

    name: str
    used: float
    moved_by: str


REPLICA_BYTES: Final = 60 * 2**20
"""Memory of the master and of the metrics process."""
WORKER_BYTES: Final = 360 * 2**20
"""Memory of a worker at its start, and while it ingests documents. Later, it is a quarter less."""
MEMORY_STEP: Final = 64 * 2**20

MOVED_BY: Final[Mapping[str, str]] = {
    "Redis's main thread": "fewer, busier workers; a higher hit rate; a faster core; io-threads in redis.conf; "
    "BREAKER_REDIS_URL; redis+cluster:// with several tenants",
    "Redis's network": "RETRIEVAL_CANDIDATES (passages travel with their vectors); a faster link; fewer misses",
    "Redis's connections": "maxclients in redis.conf with the file descriptors for it; REDIS_MAX_CONNECTIONS",
    "Redis's memory": "maxmemory; SEMANTIC_CACHE_MAX_SIZE; an embedder of fewer dimensions; redis+cluster://",
    "workers": "more replicas or WORKERS; an embedder on Ollama takes its work from the worker",
    "GPUs": "more GPUs or more Ollamas in OLLAMA_BASE_URL; a higher hit rate; shorter answers; a smaller model",
}


def limits(used: Mapping[str, float]) -> tuple[Limit, ...]:
    """Returns the limits, fullest first."""
    found = (Limit(name, share, MOVED_BY[name]) for name, share in used.items())
    return tuple(sorted(found, key=lambda limit: -limit.used))


def in_flight(per_second: float, seconds: float) -> float:
    """Returns the average number in progress by Little's law."""
    return per_second * seconds


def servers_for(load: float, utilisation: float) -> int:
    """Returns how many servers keep `load` (seconds of work per second) at or below `utilisation`; at least 1."""
    return max(1, math.ceil(load / utilisation - 1e-9))


def erlang_c(load: float, servers: int) -> float:
    """Returns the share of Poisson arrivals that find all `servers` busy; 1 if the servers cannot keep up."""
    if load <= 0:
        return 0.0
    if load >= servers:
        return 1.0
    # The inverse of Erlang B, as a sum that stops when its terms become negligible: servers may be billions.
    term = total = 1.0
    for number in range(servers):
        term *= (servers - number) / load
        total += term
        if term < total * 1e-16 or total > 1e300:
            break
    return 1 / (1 + (total - 1) * (1 - load / servers))


def mean_wait(per_second: float, seconds: float, servers: int) -> float:
    """Returns the mean seconds in the queue (M/M/c); infinite if the servers cannot keep up."""
    load = per_second * seconds
    if load >= servers:
        return math.inf
    return erlang_c(load, servers) * seconds / (servers - load)


def md1_wait(per_second: float, seconds: float) -> float:
    """Returns the mean seconds in the queue of one server with constant service time (M/D/1)."""
    load = per_second * seconds
    return math.inf if load >= 1 else load * seconds / (2 * (1 - load))


def idle(demand: Demand, costs: Costs) -> Cost:
    """Returns the cost per second of the work that all workers do without requests."""
    pace = costs.pace(demand.fleet)
    total = Cost()
    for one in costs.periodic:
        per_second = one.times(demand.breakers) / (one.every * (pace if one.shared else 1.0))
        total += one.cost * (per_second * demand.fleet)
    return total


def exact_hit(costs: Costs) -> Cost:
    """Returns the cost of one lookup by digest."""
    return costs.exact


def semantic_hit(demand: Demand, costs: Costs) -> Cost:
    """Returns the cost of a failed lookup by digest and a semantic lookup."""
    return costs.exact + costs.similar.at(demand.entries)


def miss(demand: Demand, costs: Costs) -> Cost:
    """Returns the cost of both failed lookups, the flight, the documents, the permit and the store."""
    found = costs.retrieve.at(demand.chunks) if demand.chunks else Cost()
    looked = semantic_hit(demand, costs) + costs.once["corpus"] + found
    written = Cost(bytes_in=demand.answer_bytes)
    return looked + costs.once["flight"] + costs.once["permit"] + costs.store.at(demand.entries) + written


def flush_rate(per_second: float, workers: int, seconds: float) -> float:
    """Returns how often per second the fleet flushes events that each worker collects for `seconds`.

    `per_second` events arrive at random times across the fleet.
    """
    return workers / seconds * (1 - math.exp(-per_second / workers * seconds))


def reports(demand: Demand, costs: Costs) -> Cost:
    """Returns the cost of counters, cache touches and call outcomes. Each worker sends them at most four times a
    second.
    """
    flushes = flush_rate(demand.rate, demand.fleet, costs.coalescing["counters_flush"])
    touches = flush_rate(demand.hits, demand.fleet, costs.coalescing["counters_flush"])
    outcomes = flush_rate(demand.generations, demand.fleet, costs.coalescing["breaker_report"])
    retries = flush_rate(demand.generations, demand.fleet, costs.coalescing["retries_sync"])
    counted = costs.once["counters_flush"] * flushes + costs.once["touch"] * touches
    return counted + costs.once["breaker_report"] * outcomes + costs.once["retries_sync"] * retries


def redis_parts(demand: Demand, costs: Costs) -> dict[str, Cost]:
    """Returns the cost per second by cause. A hit also sends the answer's text."""
    answer = Cost(bytes_out=demand.answer_bytes)
    return {
        "idle": idle(demand, costs),
        "exact hits": (exact_hit(costs) + answer) * (demand.rate * demand.exact),
        "semantic hits": (semantic_hit(demand, costs) + answer) * (demand.rate * demand.semantic),
        "misses": miss(demand, costs) * demand.generations,
        "reports": reports(demand, costs),
    }


def notice_ms(demand: Demand, costs: Costs, utilisation: float) -> float:
    """Returns the milliseconds until the last worker knows of a breaker transition.

    Redis wakes each worker, which then reads the breaker once. Infinite if Redis cannot keep up.
    """
    if utilisation >= 1:
        return math.inf
    poll = next(one.cost.server_us for one in costs.periodic if one.name == "breaker_poll")
    return demand.fleet * (costs.wake_us + poll) / (1 - utilisation) / 1000


@dataclass(frozen=True, slots=True)
class Plan:
    """The needs of a fleet in seconds, bytes and shares of 1.

    `pod_cores` and `pod_bytes`: what the container of a replica should request on Kubernetes. `redis_parts`:
    microseconds of Redis's main thread per second, by cause.
    """

    workers_needed: int
    replicas_needed: int
    worker_share: float
    pod_cores: float
    pod_bytes: int
    redis: Cost
    redis_parts: dict[str, float]
    redis_share: float
    redis_bytes: float
    connections_idle: int
    connections_most: int
    generations: float
    generation_seconds: float
    in_flight: float
    gpus: int
    bulkhead: int
    waits: float
    mean_wait: float
    notice_ms: float
    limits: tuple[Limit, ...]

    @property
    def first_limit(self) -> Limit:
        """The resource that is exhausted first."""
        return self.limits[0]


def plan(demand: Demand, costs: Costs, capacity: Capacity) -> Plan:
    """Computes the plan. No I/O."""
    parts = redis_parts(demand, costs)
    redis = sum(parts.values(), Cost())
    work = worker_load(demand, costs)
    share = redis.server_us / 1e6
    load = in_flight(demand.generations, demand.generation_seconds)
    gpus = servers_for(load / demand.slots, capacity.gpu_share)
    installed = capacity.gpus or gpus
    needed = servers_for(work / (1 - costs.worker.idle / 1e6), capacity.worker_share)
    busy = work / demand.fleet + costs.worker.idle / 1e6
    idle, most = connections(demand, costs, capacity)
    memory = redis_memory(demand, costs, capacity)
    used = {
        "Redis's main thread": share / capacity.redis_share,
        "Redis's network": max(redis.bytes_in, redis.bytes_out) * 8 / (capacity.network_gbit * 1e9 * 0.7),
        "Redis's connections": most / capacity.maxclients,
        "Redis's memory": memory / capacity.redis_bytes,
        "workers": needed / demand.fleet,
    }
    if capacity.gpus is not None:
        used["GPUs"] = load / (capacity.gpus * demand.slots * capacity.gpu_share)
    return Plan(
        workers_needed=needed,
        replicas_needed=math.ceil(needed / demand.workers),
        worker_share=busy,
        pod_cores=min(1.0, busy / capacity.worker_share) * demand.workers,
        pod_bytes=replica_memory(demand.workers),
        redis=redis,
        redis_parts={name: cost.server_us for name, cost in parts.items()},
        redis_share=share,
        redis_bytes=memory,
        connections_idle=idle,
        connections_most=most,
        generations=demand.generations,
        generation_seconds=demand.generation_seconds,
        in_flight=load,
        gpus=gpus,
        bulkhead=math.ceil(installed / demand.backends) * demand.slots,
        waits=erlang_c(load, installed * demand.slots),
        mean_wait=mean_wait(demand.generations, demand.generation_seconds, installed * demand.slots),
        notice_ms=notice_ms(demand, costs, share),
        limits=limits(used),
    )


def worker_load(demand: Demand, costs: Costs) -> float:
    """Returns the CPU seconds per second of all workers, without their idle load."""
    worker = costs.worker
    generation = worker.miss + worker.token * demand.answer_tokens
    hits = demand.exact * worker.exact_hit + demand.semantic * worker.semantic_hit
    return (demand.rate * hits + demand.generations * generation) / 1e6


def replica_memory(workers: int) -> int:
    """Returns the bytes of a replica without documents being read, rounded up to 64 MiB."""
    needed = REPLICA_BYTES + workers * WORKER_BYTES
    return math.ceil(needed / MEMORY_STEP) * MEMORY_STEP


def connections(demand: Demand, costs: Costs, capacity: Capacity) -> tuple[int, int]:
    """Returns the fleet's Redis connections when idle, and at most. A worker needs one per breaker log and message
    channel.
    """
    readers = 2 * demand.breakers + 1
    idle = costs.worker.connections + 2 * (demand.breakers - 1)
    return math.ceil(idle * demand.fleet), math.ceil((max(idle, capacity.max_connections + readers)) * demand.fleet)


def redis_memory(demand: Demand, costs: Costs, capacity: Capacity) -> float:
    """Returns the bytes of the data, times the overhead of Redis."""
    entries = demand.entries * (costs.entry_bytes + demand.answer_bytes)
    data = entries + demand.chunks * costs.chunk_bytes + demand.fleet * costs.worker.memory
    return (capacity.redis_empty_bytes + data) * capacity.memory_factor
