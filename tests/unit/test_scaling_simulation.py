"""The simulation matches closed forms, and one seed gives one result."""

from __future__ import annotations

import math
import random
from collections.abc import Generator

import pytest
import simpy

from api.scaling import plan as redis_load
from api.scaling.costs import load_costs
from api.scaling.plan import Demand, md1_wait, mean_wait
from api.scaling.simulation import Network, Service, SimulatedRedis, as_measured, exponential, quantile, simulate

pytestmark = [pytest.mark.slow, pytest.mark.once(reason="a simulation with a seed")]

COSTS = load_costs()


def mean_wait_of(load: float, service: Service, seed: int, arrivals: int = 120_000) -> float:
    """Returns the mean wait in seconds of random arrivals, each with a second of work."""
    env, rng = simpy.Environment(), random.Random(seed)
    server = SimulatedRedis(env, rng, service)

    def arriving() -> Generator[simpy.Event, None, None]:
        for _ in range(arrivals):
            yield env.timeout(rng.expovariate(load))
            server.submit(1.0)

    env.process(arriving())
    env.run()
    return sum(server.waits) / len(server.waits)


@pytest.mark.parametrize("load", [0.3, 0.5, 0.7])
def test_constant_service_times_match_m_d_1(load: float) -> None:
    assert mean_wait_of(load, as_measured, seed=7) == pytest.approx(md1_wait(load, 1.0), rel=0.05)


@pytest.mark.parametrize("load", [0.3, 0.5, 0.7])
def test_exponential_service_times_match_m_m_1(load: float) -> None:
    assert mean_wait_of(load, exponential, seed=7) == pytest.approx(mean_wait(load, 1.0, 1), rel=0.08)


def test_work_waits_for_the_work_before_it() -> None:
    env = simpy.Environment()
    server = SimulatedRedis(env, random.Random(1))
    assert [server.submit(seconds) for seconds in (1.0, 2.0, 0.5)] == [1.0, 3.0, 3.5]
    assert list(server.waits) == [0.0, 1.0, 3.0]
    env.run(until=7.0)
    assert server.utilisation == pytest.approx(0.5)
    assert server.submit(1.0) == 1.0


def test_the_seed_determines_the_result() -> None:
    demand = Demand(rate=200, replicas=5, workers=4)
    first, again, other = (simulate(demand, COSTS, seed, seconds=2.0) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("workers", [8, 400])
def test_the_utilization_matches_the_cost_model(workers: int) -> None:
    demand = Demand(rate=100, entries=1000, replicas=1, workers=workers)
    expected = sum(cost.server_us for cost in redis_load.redis_parts(demand, COSTS).values()) / 1e6
    found = [simulate(demand, COSTS, seed, seconds=8.0, transitions=0).utilisation for seed in (1, 2)]
    assert sum(found) / 2 == pytest.approx(expected, rel=0.1)


def test_every_worker_notices_a_transition_the_last_after_all_were_served() -> None:
    demand = Demand(rate=0, replicas=100, workers=4)
    found = simulate(demand, COSTS, 3, seconds=1.0, transitions=2, network=Network(0.0, 0.0))
    assert found.unheard == 0
    poll = next(one.cost.server_us for one in COSTS.periodic if one.name == "breaker_poll")
    least = 400 * (COSTS.wake_us + poll) / 1000
    assert least <= found.notice_most <= 1.2 * least + 1
    assert found.notice_p50 <= found.notice_p99 <= found.notice_most


def test_an_overloaded_redis_is_reported() -> None:
    demand = Demand(rate=3000, exact=0.0, semantic=0.0, chunks=10_000, replicas=1, workers=4)
    found = simulate(demand, COSTS, 1, seconds=0.3, transitions=1)
    assert found.utilisation == 1.0
    assert found.late > 0
    assert found.unheard == 4
    assert found.notice_p50 == found.notice_most == math.inf
    assert found.p99 > 10 * simulate(Demand(rate=1), COSTS, 1, seconds=0.3).p99


def test_quantiles_of_few_and_of_none() -> None:
    assert [quantile([1.0, 2.0, 3.0, 4.0], share) for share in (0.5, 0.99, 1.0)] == [3.0, 4.0, 4.0]
    assert quantile([], 0.5) == 0.0
