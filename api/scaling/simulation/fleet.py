"""The processes of a fleet: what each worker does by the clock, what requests cause, and what a transition does."""

from __future__ import annotations

import random
from collections.abc import Generator
from dataclasses import dataclass
from typing import Final

import simpy

from api.scaling import redis_load
from api.scaling.costs import Costs
from api.scaling.demand import Demand
from api.scaling.simulation.redis_server import RedisServer

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
        redis: RedisServer,
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
