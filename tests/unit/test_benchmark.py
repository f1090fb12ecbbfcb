"""`ragherd benchmark`: which differences are real, and what a saved benchmark must have."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragherd.benchmark_compare import Difference, block_of, compare, draws
from ragherd.benchmark_file import (
    NotABenchmark,
    machine,
    path_of,
    read_benchmark,
    round_of,
    warnings_of,
    write_benchmark,
)
from ragherd.load_plan import GROWTH, Reply, Tally

RUNS = 100
TOLERANCE = 0.05


def simulated(seed: int, slowdown: float = 1.0, rounds: int = 40, noise: float = 0.04) -> list[dict[str, Any]]:
    """Returns rounds of 3 seconds whose noise lasts: each second keeps 70 % of the last one's deviation.

    Hits take 2 ms in the median and misses 200 ms. The load is closed, so a slower service gets fewer requests.
    """
    random, deviation, found = np.random.default_rng(seed), 0.0, []
    for _ in range(rounds):
        latency: dict[str, Counter[int]] = {name: Counter() for name in ("all", "hit_exact", "miss")}
        hits = requests = 0
        for _ in range(3):
            deviation = 0.7 * deviation + random.normal(0, noise * np.sqrt(1 - 0.7**2))
            count = int(random.poisson(60 * np.exp(-deviation) / slowdown))
            is_hit = random.random(count) < 0.65
            medians = np.where(is_hit, np.log(2), np.log(200))
            times = random.lognormal(medians, 0.35) * slowdown * np.exp(deviation)
            buckets = np.floor(np.log(times) / GROWTH).astype(int)
            for name, chosen in (("all", np.full(count, True)), ("hit_exact", is_hit), ("miss", ~is_hit)):
                latency[name].update(buckets[chosen].tolist())
            hits, requests = hits + int(is_hit.sum()), requests + count
        figures = {"seconds": 3.0, "requests": requests, "failed": int(random.poisson(0.05)), "hits": hits}
        found.append({**figures, "looked_up": requests, "latency": {name: dict(one) for name, one in latency.items()}})
    return found


def named(found: list[Difference]) -> dict[str, Difference]:
    return {one.name: one for one in found}


@pytest.mark.slow
@pytest.mark.once(reason="a simulation with a seed")
def test_two_runs_of_the_same_differ_in_at_most_5_of_100() -> None:
    found = [compare(simulated(seed), simulated(seed + RUNS), TOLERANCE) for seed in range(RUNS)]
    assert sum(any(one.real for one in each) for each in found) <= 5


@pytest.mark.slow
@pytest.mark.once(reason="a simulation with a seed")
def test_a_slowdown_of_10_percent_is_found_in_at_least_95_of_100() -> None:
    found = [named(compare(simulated(seed), simulated(seed + RUNS, 1.1), TOLERANCE)) for seed in range(RUNS)]
    assert sum(any(one.regression for one in each.values()) for each in found) >= 95
    medians = [each["latency p50, miss"].change for each in found]
    assert np.mean(medians) == pytest.approx(0.1, abs=0.01)


@pytest.mark.slow
def test_a_speedup_is_better_and_no_regression() -> None:
    found = named(compare(simulated(1, 1.3), simulated(2), TOLERANCE))
    slow = found["latency p50, miss"]
    assert (slow.verdict, slow.regression) == ("better", False)
    assert slow.low < slow.change < slow.high < 0
    assert found["requests per second"].verdict == "better"
    assert found["hit rate"].verdict == "no difference"


def test_a_real_change_within_the_tolerance_is_no_regression() -> None:
    found = named(compare(simulated(1), simulated(2, 1.5), 0.8))
    assert found["latency p50, all"].verdict == "worse"
    assert not any(one.regression for one in found.values())


@pytest.mark.slow
def test_errors_are_a_regression_whatever_the_tolerance_is() -> None:
    failing = [{**one, "failed": one["requests"] // 20} for one in simulated(2)]
    found = named(compare(simulated(1), failing, 10.0))["error rate"]
    assert (found.verdict, found.regression) == ("worse", True)
    assert found.change == pytest.approx(0.05, abs=0.01)


def test_figures_with_few_requests_are_not_compared() -> None:
    few = [{**one, "latency": {**one["latency"], "stale": {100: 1}}} for one in simulated(1)]
    names = set(named(compare(few, few, TOLERANCE)))
    assert "latency p50, all" in names
    assert not {name for name in names if "stale" in name}


def test_equal_rounds_without_any_noise_do_not_differ() -> None:
    still = [{**simulated(1)[0], "latency": {"all": {100: 500}}}] * 10
    found = named(compare(still, still, TOLERANCE))
    assert {one.verdict for one in found.values()} == {"no difference"}


def test_successive_rounds_are_drawn_together() -> None:
    weights = draws(40, seed=1)
    assert (weights.sum(axis=1) == 40).all()
    neighbors = np.corrcoef(weights[:, 9], weights[:, 10])[0, 1]
    assert neighbors > 0.5
    assert np.corrcoef(weights[:, 3], weights[:, 3 + 2 * block_of(40)])[0, 1] < 0.1


# -- Files -------------------------------------------------------------------------------------------------------------


def saved(**changes: Any) -> dict[str, Any]:
    configuration = {"version": "1.0", "cache_policy": "guarded"}
    return {
        "format": 1,
        "made": "2026-11-28T12:00:00Z",
        "machine": {**machine(), "load_average": 0.1, "cores": 4},
        "service": {"digest": "0", "configuration": configuration, "redis": None},
        "plan": {"rounds": 40, "users": 8},
        "rounds": simulated(1, rounds=10),
        **changes,
    }


def test_a_benchmark_survives_its_file(tmp_path: Path) -> None:
    path = write_benchmark(str(tmp_path / "new" / "one.json"), saved())
    found = read_benchmark(str(path))
    assert named(compare(found["rounds"], saved()["rounds"], TOLERANCE))["hit rate"].change == 0
    assert path_of("v1.2") == Path(".data/benchmarks/v1.2.json")
    assert path_of("./v1") == Path("v1")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not a benchmark"),
        ("[]", "is not a benchmark"),
        (json.dumps({**saved(), "format": 9}), "has the format 9"),
        (json.dumps({**saved(), "rounds": saved()["rounds"][:3]}), "has 3 rounds, a comparison needs 10"),
    ],
)
def test_what_is_no_benchmark_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "one.json"
    file.write_text(text)
    with pytest.raises(NotABenchmark, match=said):
        read_benchmark(str(file))
    with pytest.raises(NotABenchmark, match="No such file"):
        read_benchmark(str(tmp_path / "absent.json"))


def test_what_else_may_explain_a_difference_is_a_warning() -> None:
    assert warnings_of(saved(), saved()) == []
    other_release = saved(
        service={**saved()["service"], "configuration": {"version": "1.1", "cache_policy": "guarded"}}
    )
    assert warnings_of(saved(), other_release) == []  # that is what is compared
    slower = saved(machine={**saved()["machine"], "cpu": "another"})
    observed = saved(service={**saved()["service"], "configuration": {"version": "1.0", "cache_policy": "observe"}})
    fewer = saved(plan={"rounds": 40, "users": 4})
    busy = saved(machine={**saved()["machine"], "load_average": 3.5})
    late = saved(generator_lag_ms=80.0)
    short = saved(rounds=[{**one, "requests": 20} for one in saved()["rounds"]])
    for one, said in (
        (slower, "The machines differ: cpu"),
        (observed, "The settings differ: cache_policy guarded and observe"),
        (fewer, "The loads differ: users 8 and 4"),
        (busy, "load average 3.5 on 4 cores"),
        (short, "In the second benchmark, a user asks only 2.5 questions in a round: use a longer --round-seconds."),
        (late, "too slow for the load of the second"),
    ):
        [line] = warnings_of(saved(), one)
        assert said in line


def test_a_round_keeps_the_counts_of_each_status_and_errors_without_latency() -> None:
    tally = Tally()
    tally.add(0.0, 0.1, Reply("miss"))
    tally.add(0.1, 0.101, Reply("hit", "exact"))
    tally.add(0.2, 0.3, Reply(error="HTTP 503"))
    found = round_of(tally, 1.0)
    assert (found["requests"], found["failed"], found["hits"], found["looked_up"]) == (3, 1, 1, 2)
    assert {name: sum(counts.values()) for name, counts in found["latency"].items()} == {
        "all": 2, "hit_exact": 1, "miss": 1,
    }  # fmt: skip


def test_the_machine_is_described_without_naming_it() -> None:
    found = machine()
    assert {"cpu", "cores", "memory_mib", "os", "python", "ragherd", "load_average"} <= set(found)
    assert "host" not in found
    assert machine(Path("/nowhere"))["memory_mib"] is None
