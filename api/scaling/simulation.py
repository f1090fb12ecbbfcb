"""Simulates a fleet: its workers' periodic work, its requests and breaker transitions, with Redis as a queue.

Redis is one thread that executes operations in the order of their arrival.
"""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Final

import simpy

from api.scaling import plan as redis_load
from api.scaling.costs import Costs
from api.scaling.plan import Demand

Service = Callable[[random.Random, float], float]


def as_measured(_: random.Random, mean: float) -> float:
    """Takes exactly the mean time. Operations of different kinds still differ."""
    return mean


def exponential(rng: random.Random, mean: float) -> float:
    """Draws from an exponential distribution around the mean: the textbook M/M/1."""
    return rng.expovariate(1 / mean) if mean else 0.0


class SimulatedRedis:
    """Redis as a single-server queue. Times in seconds. The end of an operation is known when it arrives."""

    def __init__(self, env: simpy.Environment, rng: random.Random, service: Service = as_measured) -> None:
        self._env = env
        self._rng = rng
        self._service = service
        self._free_at = 0.0
        self._since = 0.0
        self.busy = 0.0
        self.done = 0
        self.waits = array("d")
        """Seconds in the queue of each operation since `begin`."""

    def begin(self) -> None:
        """Resets the statistics."""
        self._since, self.busy, self.done = self._env.now, 0.0, 0
        self.waits = array("d")

    def submit(self, seconds: float) -> float:
        """Queues an operation; returns the seconds until it is done."""
        now = self._env.now
        started, took = max(now, self._free_at), self._service(self._rng, seconds)
        self._free_at = started + took
        self.busy += took
        self.done += 1
        self.waits.append(started - now)
        return self._free_at - now

    @property
    def utilisation(self) -> float:
        """The share of the time since `begin` that Redis was busy, including queued operations."""
        passed = self._env.now - self._since
        return min(1.0, self.busy / passed) if passed else 0.0


Process = Generator[simpy.Event, None, None]
MICRO: Final = 1e-6
JITTER: Final = (0.8, 1.2)


@dataclass(frozen=True, slots=True)
class Network:
    """Seconds of a round trip, and mean seconds until a worker's event loop reads an incoming message."""

    round_trip: float = 0.0005
    loop_lag: float = 0.001


class Fleet:
    """One simulated fleet. `notices`: for each transition, the seconds until each worker knew."""

    def __init__(
        self,
        env: simpy.Environment,
        redis: SimulatedRedis,
        demand: Demand,
        costs: Costs,
        network: Network,
        rng: random.Random,
    ) -> None:
        self._env = env
        self._redis = redis
        self._demand = demand
        self._costs = costs
        self._network = network
        self._rng = rng
        self._pending: set[tuple[str, int]] = set()
        self._poll = next(one.cost.server_us for one in costs.periodic if one.name == "breaker_poll") * MICRO
        self.notices: list[list[float]] = []

    def start(self) -> None:
        """Starts the workers' periodic work and the requests."""
        pace = self._costs.pace(self._demand.fleet)
        for one in self._costs.periodic:
            every = one.every * (pace if one.shared else 1.0)
            for _ in range(self._demand.fleet * one.times(self._demand.breakers)):
                self._env.process(self._periodic(one.cost.server_us * MICRO, every))
        if self._demand.rate:
            self._env.process(self._requests())

    def _round_trip(self, seconds: float) -> simpy.Timeout:
        return self._env.timeout(self._redis.submit(seconds) + self._network.round_trip)

    def _periodic(self, seconds: float, every: float) -> Process:
        yield self._env.timeout(every * self._rng.random())
        while True:
            yield self._round_trip(seconds)
            yield self._env.timeout(every * self._rng.uniform(*JITTER))

    # -- requests -----------------------------------------------------------------------------------------------------

    def _requests(self) -> Process:
        demand, costs = self._demand, self._costs
        exact = redis_load.exact_hit(costs).server_us * MICRO
        similar = costs.similar.at(demand.entries).server_us * MICRO
        rest = redis_load.miss(demand, costs).server_us * MICRO - exact - similar
        while True:
            yield self._env.timeout(self._rng.expovariate(demand.rate))
            kind, worker = self._rng.random(), self._rng.randrange(demand.fleet)
            is_hit = kind < demand.exact + demand.semantic
            steps = [exact] if kind < demand.exact else [exact, similar]
            if not is_hit or self._rng.random() < demand.refresh:
                # A miss takes five round trips. Two of them are the lookups.
                steps = [exact, similar, rest / 3, rest / 3, rest / 3]
            self._env.process(self._request(worker, steps, is_hit=is_hit))

    def _request(self, worker: int, steps: list[float], *, is_hit: bool) -> Process:
        for seconds in steps:
            yield self._round_trip(seconds)
        self._collect("counters_flush", worker)
        if is_hit:
            self._collect("touch", worker)
        if len(steps) > 2:
            self._collect("breaker_report", worker)
            self._collect("retries_sync", worker)

    def _collect(self, what: str, worker: int) -> None:
        """Sends an event together with the others that the worker has collected by then."""
        if (what, worker) not in self._pending:
            self._pending.add((what, worker))
            self._env.process(self._send(what, worker))

    def _send(self, what: str, worker: int) -> Process:
        event = "counters_flush" if what == "touch" else what
        yield self._env.timeout(self._costs.coalescing[event] * self._rng.random())
        self._pending.discard((what, worker))
        yield self._round_trip(self._costs.once[what].server_us * MICRO)

    # -- a transition of the breaker ----------------------------------------------------------------------------------

    def transition(self) -> None:
        """Wakes all followers at once. Each then reads the breaker."""
        self.notices.append([])
        self._redis.submit(self._costs.once["breaker_report"].server_us * MICRO)
        for _ in range(self._demand.fleet):
            woken = self._redis.submit(self._costs.wake_us * MICRO)
            self._env.process(self._notice(self._env.now, woken, self.notices[-1]))

    def _notice(self, began: float, woken: float, notice_times: list[float]) -> Process:
        lag = self._rng.expovariate(1 / self._network.loop_lag) if self._network.loop_lag else 0.0
        yield self._env.timeout(woken + self._network.round_trip / 2 + lag)
        yield self._round_trip(self._poll)
        notice_times.append(self._env.now - began)


WARM_SECONDS: Final = 2.0
TRANSITION_INTERVAL: Final = 1.0
"""Seconds between two transitions."""
TIMEOUT: Final = 0.2
"""REDIS_TIMEOUT: a worker that waits longer considers Redis down."""


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """Times in milliseconds. `late`: operations slower than `TIMEOUT`. `work`: operations per second.

    `unheard`: notices that did not arrive before the end of the run. Their times count as infinite.
    """

    work: float
    utilisation: float
    p50: float
    p99: float
    most: float
    late: int
    notice_p50: float
    notice_p99: float
    notice_most: float
    unheard: int


def simulate(
    demand: Demand,
    costs: Costs,
    seed: int,
    *,
    seconds: float = 5.0,
    transitions: int = 3,
    network: Network | None = None,
    service: Service = as_measured,
) -> SimulationResult:
    """Runs one simulation. The same seed gives the same result.

    Utilization and waits are measured before the first transition.
    """
    network, rng, env = network or Network(), random.Random(seed), simpy.Environment()  # noqa: S311 - no secret
    redis = SimulatedRedis(env, rng, service)
    fleet = Fleet(env, redis, demand, costs, network, rng)
    fleet.start()
    env.run(until=WARM_SECONDS)
    redis.begin()
    env.run(until=WARM_SECONDS + seconds)
    utilisation, work, waits = redis.utilisation, redis.done / seconds, sorted(redis.waits)
    for _ in range(transitions):
        fleet.transition()
        env.run(until=env.now + TRANSITION_INTERVAL)
    notice_times = sorted(one for notices in fleet.notices for one in notices)
    unheard = transitions * demand.fleet - len(notice_times)
    notice_times += [math.inf] * unheard
    late = sum(wait + network.round_trip > TIMEOUT for wait in redis.waits)
    return SimulationResult(
        work=work,
        utilisation=utilisation,
        p50=1000 * (quantile(waits, 0.5) + network.round_trip),
        p99=1000 * (quantile(waits, 0.99) + network.round_trip),
        most=1000 * (quantile(waits, 1.0) + network.round_trip),
        late=late,
        notice_p50=1000 * quantile(notice_times, 0.5),
        notice_p99=1000 * quantile(notice_times, 0.99),
        notice_most=1000 * quantile(notice_times, 1.0),
        unheard=unheard,
    )


def quantile(ordered: Sequence[float], share: float) -> float:
    """Returns a quantile of sorted values; 0 if there are none."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
