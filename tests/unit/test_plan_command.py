"""`ragherd plan` and `ragherd simulate`: output, and errors for bad input."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from ragherd.commands import commands
from scripts.draw_scaling import CHART, ROWS, draw

pytestmark = [pytest.mark.slow, pytest.mark.once(reason="a simulation with a seed")]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(commands, list(arguments), env={"COLUMNS": "200"})


def planned(*arguments: str) -> Any:
    result = run("plan", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_plan_names_the_needs_and_the_first_limit() -> None:
    result = run("plan", "--rate", "50", "--replicas", "2000")
    assert result.exit_code == 0
    assert "50 requests/s, 30% exact and 20% semantic hits, 2,000 replicas of 4 workers" in result.stdout
    assert "The first limit: Redis's connections. Costs as measured on 20" in result.stdout
    for named in ("workers needed", "BULKHEAD_MAX_CONCURRENT", "GPUs", "raised by", "Little's law"):
        assert named in result.stdout


def test_the_json_output_includes_the_machine_of_the_measurement() -> None:
    found = planned("--rate", "20", "--exact", "0.5", "--semantic", "0", "--gpus", "3", "--slots", "8")
    assert found["demand"]["exact"] == 0.5
    assert set(found["machine"]) >= {"date", "cpu", "redis", "python"}
    assert found["plan"]["generations"] == 10
    assert "GPUs" in {limit["name"] for limit in found["plan"]["limits"]}


def test_an_infinite_wait_is_null_in_json_and_a_word_in_the_table() -> None:
    overfull = ("--rate", "100", "--gpus", "1")
    assert planned(*overfull)["plan"]["mean_wait"] is None
    assert "forever" in run("plan", *overfull).stdout
    too_much_for_redis = ("--rate", "100000")
    assert planned(*too_much_for_redis)["plan"]["notice_ms"] is None
    assert "never" in run("plan", *too_much_for_redis).stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--rate", "1", "--exact", "0.9", "--semantic", "0.9"), "add up to more than 1"),
        (("--rate", "1", "--costs", "nowhere.json"), "nowhere.json: not what scripts/measure_costs.py writes"),
        (("--rate", "inf"), "rate: must be a number, at least 0"),
        (("--rate", "-1"), "--rate"),
        (("--rate", "1", "--replicas", "0"), "--replicas"),
        ((), "--rate"),
    ],
)
def test_bad_input_exits_with_2_and_a_line_that_names_it(arguments: tuple[str, ...], said: str) -> None:
    result = run("plan", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert "Traceback" not in result.output


def test_a_simulation_gives_one_document_with_a_run_for_each_size_and_seed() -> None:
    sizes = ("--replicas", "2", "--replicas", "5", "--seeds", "2", "--seconds", "0.5")
    result = run("simulate", *sizes, "--rate", "3", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert set(found["machine"]) >= {"date", "cpu", "redis", "python"}
    lines = found["runs"]
    assert [(line["replicas"], line["workers"], line["rate"], line["seed"]) for line in lines] == [
        (2, 8, 6.0, 1),
        (2, 8, 6.0, 2),
        (5, 20, 15.0, 1),
        (5, 20, 15.0, 2),
    ]
    assert all(0 < line["utilisation"] < 1 and line["unheard"] == 0 for line in lines)


def test_a_simulation_names_the_first_size_that_is_too_large() -> None:
    short = ("--seeds", "1", "--seconds", "0.2")
    misses = ("--rate", "1000", "--exact", "0", "--semantic", "0", "--chunks", "10000")
    result = run("simulate", "--replicas", "2", "--replicas", "5", *short, *misses)
    assert result.exit_code == 0
    assert "First limit:" in result.stdout
    assert "at 2 replicas (8 workers)" in result.stdout
    assert "never" in result.stdout, "a transition that no worker hears of takes no time at all"
    [line] = json.loads(run("simulate", "--replicas", "2", *short, *misses, "--json").stdout)["runs"]
    assert line["unheard"] > 0
    assert line["notice_most"] is None
    quiet = run("simulate", "--replicas", "2", *short)
    assert "None of these fleets reaches a limit" in quiet.stdout


def test_without_simpy_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "api.scaling.simulation", None)
    result = run("simulate")
    assert result.exit_code == 2
    assert "pip install 'ragherd[scaling]'" in result.stderr


def test_the_chart_on_the_page_is_up_to_date() -> None:
    assert CHART.read_text() == draw(json.loads(ROWS.read_text()))
