"""The cost model: units by hand, closed forms, and more load never needs less."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.breaker.fleet_breaker import POLL_SECONDS
from api.redis_store.client import RedisAddress
from api.redis_store.connections import BatchingRedis
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.stores.fleet import FULL_PACE_WORKERS, HEARTBEAT_SECONDS, SLOWEST
from api.scaling import plan as queueing
from api.scaling import plan as redis_load
from api.scaling.costs import BySize, Costs, CostsUnreadable, load_costs
from api.scaling.plan import MOVED_BY, Capacity, Demand, Plan, connections, plan, worker_load
from scripts.costs import operations

COSTS = load_costs()
CAPACITY = Capacity()


def planned(**wanted: float) -> Plan:
    return plan(Demand(**{"rate": 10.0, **wanted}), COSTS, CAPACITY)  # type: ignore[arg-type]


# -- closed forms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("load", "servers", "waits"), [(2.0, 3, 4 / 9), (0.5, 1, 0.5), (0.0, 4, 0.0), (5.0, 5, 1.0)])
def test_erlang_c(load: float, servers: int, waits: float) -> None:
    assert queueing.erlang_c(load, servers) == pytest.approx(waits)


def test_erlang_c_of_a_huge_number_of_servers() -> None:
    assert queueing.erlang_c(0.8e12, 10**12) == pytest.approx(0.0)
    many = 10**8  # at a load of c - sqrt(c) servers it nears a limit: Halfin and Whitt, by the normal distribution
    assert queueing.erlang_c(many - 1e4, many) == pytest.approx(0.2234, abs=1e-3)


def test_the_wait_of_one_server_is_the_m_m_1_wait() -> None:
    assert queueing.mean_wait(0.5, 1.0, 1) == pytest.approx(1.0)  # rho / (mu - lambda)
    assert queueing.mean_wait(2.0, 1.0, 2) == math.inf


def test_m_d_1_waits_half_as_long() -> None:
    assert queueing.md1_wait(0.5, 1.0) == pytest.approx(0.5)
    assert queueing.md1_wait(1.0, 1.0) == math.inf


def test_servers_are_whole_and_not_busier_than_the_target() -> None:
    assert [queueing.servers_for(load, 0.8) for load in (0.0, 0.8, 0.81, 8.0)] == [1, 1, 2, 10]


# -- figures by size ---------------------------------------------------------------------------------------------------


def test_costs_are_interpolated_log_linearly() -> None:
    figure = BySize(((100.0, 10.0), (10_000.0, 1000.0)))
    assert [figure.at(size) for size in (0, 100, 1_000, 10_000, 100_000)] == pytest.approx([10, 10, 100, 1000, 10_000])


def test_a_falling_cost_is_not_extrapolated() -> None:
    assert [BySize(((1.0, 10.0), (10.0, 8.0))).at(size) for size in (1, 10, 1e6)] == pytest.approx([10, 8, 8])


# -- units, by hand ----------------------------------------------------------------------------------------------------


def test_slots_follow_little_s_law() -> None:
    found = planned(rate=10, exact=0.5, semantic=0.1, answer_tokens=200, tokens_per_second=50, first_token=1, slots=4)
    assert found.generations == pytest.approx(4.0)
    assert found.generation_seconds == pytest.approx(5.0)
    assert found.in_flight == pytest.approx(20.0)
    assert found.gpus == 7  # 20 slots, 80 % busy: 25, of 4 a GPU
    assert found.bulkhead == 28


def test_refreshes_add_generations() -> None:
    assert Demand(rate=10, exact=0.5, semantic=0.0, refresh=0.2).generations == pytest.approx(6.0)


def test_exact_hits_cost_one_lookup_each_plus_idle_work() -> None:
    demand = Demand(rate=1000, exact=1, semantic=0, replicas=1, workers=4)
    parts = redis_load.redis_parts(demand, COSTS)
    assert parts["exact hits"].server_us == pytest.approx(1000 * COSTS.exact.server_us)
    assert parts["misses"].server_us == parts["semantic hits"].server_us == 0
    found = plan(demand, COSTS, CAPACITY)
    assert found.redis_share == pytest.approx(sum(found.redis_parts.values()) / 1e6)
    assert worker_load(demand, COSTS) == pytest.approx(1000 * COSTS.worker.exact_hit / 1e6)


def test_heartbeats_count_once_per_second_and_polls_once_per_breaker() -> None:
    one, two = (redis_load.idle(Demand(rate=0, replicas=1, workers=1, backends=n), COSTS) for n in (1, 2))
    every = {periodic.name: periodic for periodic in COSTS.periodic}
    more = sum(every[name].cost.server_us / every[name].every for name in ("breaker_poll", "breaker_follow"))
    more += every["channel_ping"].cost.server_us / every["channel_ping"].every
    assert two.server_us - one.server_us == pytest.approx(more)


def test_each_worker_flushes_at_most_four_times_a_second() -> None:
    assert redis_load.flush_rate(1e9, 10, 0.25) == pytest.approx(40.0)
    assert redis_load.flush_rate(1.0, 1000, 0.25) == pytest.approx(1.0, rel=0.01)
    assert redis_load.flush_rate(0.0, 10, 0.25) == 0


def test_memory_is_data_plus_overhead() -> None:
    few, many = (planned(entries=n, answer_tokens=100).redis_bytes for n in (0, 1_000_000))
    assert many - few == pytest.approx(1_000_000 * (COSTS.entry_bytes + 450) * CAPACITY.memory_factor)


def test_the_maximum_connections_are_the_pool_plus_readers() -> None:
    demand = Demand(rate=0, replicas=10, workers=2, backends=3)
    assert connections(demand, COSTS, CAPACITY)[1] == 20 * (64 + 7)
    assert connections(demand, COSTS, CAPACITY)[0] < connections(demand, COSTS, CAPACITY)[1]


def test_a_pod_asks_for_the_cpu_of_its_load_at_seventy_percent_and_at_most_a_core_for_each_worker() -> None:
    found = planned(rate=200, replicas=3, workers=2)
    assert found.pod_cores == pytest.approx(2 * found.worker_share / 0.7)
    assert planned(rate=1e6, replicas=3, workers=2).pod_cores == 2


def test_a_pod_asks_for_the_memory_of_its_workers_in_steps_of_64_mebibytes() -> None:
    assert [planned(workers=workers).pod_bytes >> 20 for workers in (1, 2, 4)] == [448, 832, 1536]


# -- more load never needs less ----------------------------------------------------------------------------------------

GROWS = {
    "rate": st.floats(0, 1e5),
    "entries": st.integers(0, 10_000_000),
    "chunks": st.integers(0, 10_000_000),
    "replicas": st.integers(1, 5000),
    "answer_tokens": st.integers(1, 10_000),
    "backends": st.integers(1, 50),
}


@pytest.mark.slow
@settings(max_examples=60)
@given(data=st.data(), name=st.sampled_from(sorted(GROWS)))
def test_more_load_never_needs_less(data: st.DataObject, name: str) -> None:
    less, more = sorted((data.draw(GROWS[name]), data.draw(GROWS[name])))
    small, large = planned(**{name: less}), planned(**{name: more})
    for figure in ("redis_bytes", "connections_most", "in_flight", "gpus", "workers_needed"):
        assert getattr(large, figure) >= getattr(small, figure) * (1 - 1e-9), figure
    if name not in {"replicas", "entries"}:  # shared work slows down, and another kind of index may be faster
        assert large.redis_share >= small.redis_share * (1 - 1e-9)


@pytest.mark.slow
@settings(max_examples=60)
@given(exact=st.floats(0, 1), more=st.floats(0, 1), rate=st.floats(0.1, 1e4))
def test_more_exact_hits_need_less(exact: float, more: float, rate: float) -> None:
    less, more = sorted((exact, more))
    few, many = (planned(rate=rate, exact=share, semantic=0.0) for share in (less, more))
    assert many.redis_share <= few.redis_share * (1 + 1e-9)
    assert many.in_flight <= few.in_flight * (1 + 1e-9) + 1e-9


@settings(max_examples=40)
@given(fleet=st.integers(1, 10_000))
def test_shared_work_of_a_large_fleet_is_bounded(fleet: int) -> None:
    a_second = fleet / COSTS.pace(fleet)
    assert a_second <= max(COSTS.full_pace_workers, fleet / COSTS.max_slowdown) + 1e-9


# -- limits ------------------------------------------------------------------------------------------------------------


def test_the_fullest_limit_is_first_and_has_advice() -> None:
    few = plan(Demand(rate=10, exact=0, semantic=0), COSTS, Capacity(gpus=1))
    assert few.first_limit.name == "GPUs"
    assert few.mean_wait == math.inf
    fleet = plan(Demand(rate=10, replicas=500), COSTS, CAPACITY)
    assert fleet.first_limit.name == "Redis's connections"
    roomy = plan(Demand(rate=10, replicas=500), COSTS, replace(CAPACITY, maxclients=1_000_000))
    assert roomy.first_limit.name != "Redis's connections"
    assert all(limit.moved_by == MOVED_BY[limit.name] for limit in fleet.limits)
    assert [limit.used for limit in fleet.limits] == sorted((limit.used for limit in fleet.limits), reverse=True)


def test_gpus_are_no_limit_without_a_given_number() -> None:
    assert "GPUs" not in {limit.name for limit in planned().limits}


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"rate": -1.0},
        {"rate": math.nan},
        {"rate": math.inf},
        {"exact": 1.1},
        {"exact": 0.7, "semantic": 0.4},
        {"refresh": -0.1},
        {"replicas": 0},
        {"slots": 0},
        {"tokens_per_second": 0.0},
    ],
)
def test_an_impossible_demand_is_rejected(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong)) if len(wrong) == 1 else "add up to more"):
        Demand(**{"rate": 1.0, **wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"redis_share": 0.0}, {"maxclients": 0}, {"gpus": 0}, {"network_gbit": -1.0}])
def test_an_impossible_capacity_is_rejected(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Capacity(**wrong)  # type: ignore[arg-type]


# -- what was measured -------------------------------------------------------------------------------------------------


def test_the_shipped_costs_contain_every_measured_operation() -> None:
    gate = HealthGatedRedis(BatchingRedis(), 1)
    address = RedisAddress("redis://127.0.0.1:1", 1.0, 1.0, 1)
    named = set(operations.Operations(gate, address, 0).all())
    assert {one.name for one in COSTS.periodic} | set(COSTS.once) == named | {"breaker_follow", "channel_ping"}


def test_the_shipped_costs_match_the_intervals_in_the_code() -> None:
    every = {periodic.name: periodic.every for periodic in COSTS.periodic}
    assert (COSTS.full_pace_workers, COSTS.max_slowdown) == (FULL_PACE_WORKERS, SLOWEST)
    assert (every["heartbeat"], every["breaker_poll"]) == (HEARTBEAT_SECONDS, POLL_SECONDS)
    assert dict(COSTS.coalescing) == operations.coalescing()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"sizes": 1, "operations": 2}'])
def test_the_error_names_an_invalid_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "costs.json"
    path.write_text(text)
    with pytest.raises(CostsUnreadable, match=r"costs\.json"):
        load_costs(path)


def test_a_custom_file_is_used(tmp_path: Path) -> None:
    raw = json.loads((Path(__file__).parents[2] / "api/scaling/measured_costs.json").read_text())
    raw["operations"]["heartbeat"]["server_us"] += 1000
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(raw))
    own: Costs = load_costs(path)
    before, after = (redis_load.idle(Demand(rate=0, replicas=2, workers=4), one).server_us for one in (COSTS, own))
    assert after - before == pytest.approx(8 * 1000)
