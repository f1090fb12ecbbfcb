"""Redis as a queue: one thread that does one piece of work after the other, in the order in which they came.

The processes of a fleet: what each worker does by the clock, what requests cause, and what a transition does.

One simulated run, and what came of it.
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
    """Each piece of work takes what it takes on average; those of different kinds differ."""
    return mean


def exponential(chance: random.Random, mean: float) -> float:
    """At random around the same mean: the textbook's M/M/1."""
    return chance.expovariate(1 / mean) if mean else 0.0


class SimulatedRedis:
    """Times in seconds. Of one thread and one line it is known on arrival when a piece of work will be done."""

    def __init__(self, env: simpy.Environment, chance: random.Random, service: Service = as_measured) -> None:
        self._env = env
        self._chance = chance
        self._service = service
        self._free_at = 0.0
        self._since = 0.0
        self.busy = 0.0
        self.done = 0
        self.waits = array("d")
        """Seconds in the line, of every piece of work since `begin`."""

    def begin(self) -> None:
        """Counts from now on."""
        self._since, self.busy, self.done = self._env.now, 0.0, 0
        self.waits = array("d")

    def submit(self, seconds: float) -> float:
        """Puts a piece of work into the line; gives how long from now until it is done."""
        now = self._env.now
        started, took = max(now, self._free_at), self._service(self._chance, seconds)
        self._free_at = started + took
        self.busy += took
        self.done += 1
        self.waits.append(started - now)
        return self._free_at - now

    @property
    def utilisation(self) -> float:
        """The share of the time since `begin` that it was busy; what stands in line counts from when it came."""
        passed = self._env.now - self._since
        return min(1.0, self.busy / passed) if passed else 0.0


Process = Generator[simpy.Event, None, None]
MICRO: Final = 1e-6
JITTER: Final = (0.8, 1.2)


@dataclass(frozen=True, slots=True)
class Network:
    """Seconds: there and back, and until a worker's event loop gets to what has come for it (on average)."""

    round_trip: float = 0.0005
    loop_lag: float = 0.001


class Fleet:
    """One simulated fleet. `notices`: for each transition, after how many seconds each worker knew."""

    def __init__(
        self,
        env: simpy.Environment,
        redis: SimulatedRedis,
        demand: Demand,
        costs: Costs,
        network: Network,
        chance: random.Random,
    ) -> None:
        self._env = env
        self._redis = redis
        self._demand = demand
        self._costs = costs
        self._network = network
        self._chance = chance
        self._pending: set[tuple[str, int]] = set()
        self._poll = next(one.cost.server_us for one in costs.periodic if one.name == "breaker_poll") * MICRO
        self.notices: list[list[float]] = []

    def start(self) -> None:
        """Every worker's own doings, and the requests."""
        pace = self._costs.pace(self._demand.fleet)
        for one in self._costs.periodic:
            every = one.every * (pace if one.look else 1.0)
            for _ in range(self._demand.fleet * one.times(self._demand.guards)):
                self._env.process(self._repeated(one.cost.server_us * MICRO, every))
        if self._demand.rate:
            self._env.process(self._requests())

    def _asked(self, seconds: float) -> simpy.Timeout:
        return self._env.timeout(self._redis.submit(seconds) + self._network.round_trip)

    def _repeated(self, seconds: float, every: float) -> Process:
        yield self._env.timeout(every * self._chance.random())
        while True:
            yield self._asked(seconds)
            yield self._env.timeout(every * self._chance.uniform(*JITTER))

    # -- requests -----------------------------------------------------------------------------------------------------

    def _requests(self) -> Process:
        demand, costs = self._demand, self._costs
        exact = redis_load.exact_hit(costs).server_us * MICRO
        similar = costs.similar.at(demand.entries).server_us * MICRO
        rest = redis_load.miss(demand, costs).server_us * MICRO - exact - similar
        while True:
            yield self._env.timeout(self._chance.expovariate(demand.rate))
            kind, worker = self._chance.random(), self._chance.randrange(demand.fleet)
            is_hit = kind < demand.exact + demand.semantic
            steps = [exact] if kind < demand.exact else [exact, similar]
            if not is_hit or self._chance.random() < demand.refresh:
                # Five round trips of a miss, of which two are the look-ups.
                steps = [exact, similar, rest / 3, rest / 3, rest / 3]
            self._env.process(self._request(worker, steps, is_hit=is_hit))

    def _request(self, worker: int, steps: list[float], *, is_hit: bool) -> Process:
        for seconds in steps:
            yield self._asked(seconds)
        self._gather("counters_flush", worker)
        if is_hit:
            self._gather("touch", worker)
        if len(steps) > 2:
            self._gather("breaker_report", worker)
            self._gather("retries_sync", worker)

    def _gather(self, what: str, worker: int) -> None:
        """Sent together with what else the worker has by then."""
        if (what, worker) not in self._pending:
            self._pending.add((what, worker))
            self._env.process(self._send(what, worker))

    def _send(self, what: str, worker: int) -> Process:
        gathered = "counters_flush" if what == "touch" else what
        yield self._env.timeout(self._costs.coalescing[gathered] * self._chance.random())
        self._pending.discard((what, worker))
        yield self._asked(self._costs.once[what].server_us * MICRO)

    # -- a transition of the breaker ----------------------------------------------------------------------------------

    def transition(self) -> None:
        """Redis wakes all followers in one go; each then reads the breaker, and knows."""
        self.notices.append([])
        self._redis.submit(self._costs.once["breaker_report"].server_us * MICRO)
        for _ in range(self._demand.fleet):
            woken = self._redis.submit(self._costs.wake * MICRO)
            self._env.process(self._notice(self._env.now, woken, self.notices[-1]))

    def _notice(self, began: float, woken: float, heard: list[float]) -> Process:
        lag = self._chance.expovariate(1 / self._network.loop_lag) if self._network.loop_lag else 0.0
        yield self._env.timeout(woken + self._network.round_trip / 2 + lag)
        yield self._asked(self._poll)
        heard.append(self._env.now - began)


WARM_SECONDS: Final = 2.0
BETWEEN: Final = 1.0
"""Seconds between two transitions."""
TIMEOUT: Final = 0.2
"""REDIS_TIMEOUT: a worker that waits longer takes Redis for lost."""


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """Milliseconds. `late`: pieces of work that took longer than `TIMEOUT`; `work`: pieces of work a second.

    `unheard`: notices that had not come by the end of the run; the times of notices count them as infinite.
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
    """The same seed, the same outcome. Utilisation and waits are counted before the first transition."""
    network, chance, env = network or Network(), random.Random(seed), simpy.Environment()  # noqa: S311 - no secret
    redis = SimulatedRedis(env, chance, service)
    fleet = Fleet(env, redis, demand, costs, network, chance)
    fleet.start()
    env.run(until=WARM_SECONDS)
    redis.begin()
    env.run(until=WARM_SECONDS + seconds)
    utilisation, work, waits = redis.utilisation, redis.done / seconds, sorted(redis.waits)
    for _ in range(transitions):
        fleet.transition()
        env.run(until=env.now + BETWEEN)
    heard = sorted(one for notices in fleet.notices for one in notices)
    unheard = transitions * demand.fleet - len(heard)
    heard += [math.inf] * unheard
    late = sum(wait + network.round_trip > TIMEOUT for wait in redis.waits)
    return SimulationResult(
        work=work,
        utilisation=utilisation,
        p50=1000 * (quantile(waits, 0.5) + network.round_trip),
        p99=1000 * (quantile(waits, 0.99) + network.round_trip),
        most=1000 * (quantile(waits, 1.0) + network.round_trip),
        late=late,
        notice_p50=1000 * quantile(heard, 0.5),
        notice_p99=1000 * quantile(heard, 0.99),
        notice_most=1000 * quantile(heard, 1.0),
        unheard=unheard,
    )


def quantile(ordered: Sequence[float], share: float) -> float:
    """Of values in order; 0 of none."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
