"""The cost model: what a fleet needs for what it is asked, and what gives out first."""

from __future__ import annotations

import math
from dataclasses import dataclass

from api.scaling import queueing, redis_load
from api.scaling.costs import Cost, Costs
from api.scaling.demand import Demand
from api.scaling.limits import Capacity, Limit, limits


@dataclass(frozen=True, slots=True)
class Plan:
    """Seconds, bytes, shares of 1. `redis_parts`: microseconds of Redis's main thread a second by what causes them."""

    workers_needed: int
    replicas_needed: int
    worker_share: float
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
        """What gives out first."""
        return self.limits[0]


def plan(demand: Demand, costs: Costs, capacity: Capacity) -> Plan:
    """Everything from the model; no I/O."""
    parts = redis_load.parts(demand, costs)
    redis = sum(parts.values(), Cost())
    work = worker_load(demand, costs)
    share = redis.server_us / 1e6
    load = queueing.in_flight(demand.generations, demand.generation_seconds)
    gpus = queueing.servers_for(load / demand.slots, capacity.gpu_share)
    installed = capacity.gpus or gpus
    needed = queueing.servers_for(work / (1 - costs.worker.idle / 1e6), capacity.worker_share)
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
        worker_share=work / demand.fleet + costs.worker.idle / 1e6,
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
        waits=queueing.erlang_c(load, installed * demand.slots),
        mean_wait=queueing.mean_wait(demand.generations, demand.generation_seconds, installed * demand.slots),
        notice_ms=redis_load.notice_ms(demand, costs, share),
        limits=limits(used),
    )


def worker_load(demand: Demand, costs: Costs) -> float:
    """Processor seconds a second of all workers, beside what each takes for itself."""
    worker = costs.worker
    generation = worker.miss + worker.token * demand.answer_tokens
    hits = demand.exact * worker.exact_hit + demand.semantic * worker.semantic_hit
    return (demand.rate * hits + demand.generations * generation) / 1e6


def connections(demand: Demand, costs: Costs, capacity: Capacity) -> tuple[int, int]:
    """Of the fleet to Redis: without work, and the most. A worker reads on one for each guard's log and messages."""
    readers = 2 * demand.guards + 1
    idle = costs.worker.connections + 2 * (demand.guards - 1)
    return math.ceil(idle * demand.fleet), math.ceil((max(idle, capacity.max_connections + readers)) * demand.fleet)


def redis_memory(demand: Demand, costs: Costs, capacity: Capacity) -> float:
    """Bytes of data, times what Redis needs beside it."""
    entries = demand.entries * (costs.entry_bytes + demand.answer_bytes)
    data = entries + demand.chunks * costs.chunk_bytes + demand.fleet * costs.worker.memory
    return (capacity.redis_empty_bytes + data) * capacity.memory_factor
