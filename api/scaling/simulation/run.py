"""One simulated run, and what came of it."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import simpy

from api.scaling.costs import Costs
from api.scaling.demand import Demand
from api.scaling.simulation.fleet import Fleet, Network
from api.scaling.simulation.redis_server import RedisServer, Service, as_measured

WARM_SECONDS: Final = 2.0
BETWEEN: Final = 1.0
"""Seconds between two transitions."""
TIMEOUT: Final = 0.2
"""REDIS_TIMEOUT: a worker that waits longer takes Redis for lost."""


@dataclass(frozen=True, slots=True)
class Outcome:
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
) -> Outcome:
    """The same seed, the same outcome. Utilisation and waits are counted before the first transition."""
    network, chance, env = network or Network(), random.Random(seed), simpy.Environment()  # noqa: S311 - no secret
    redis = RedisServer(env, chance, service)
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
    return Outcome(
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
