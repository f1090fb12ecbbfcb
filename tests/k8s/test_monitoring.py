"""Alerts and the dashboard use existing metrics, and the alerts fire when they should."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from api.observability.metric_names import ALL_METRICS
from tests.k8s.rendered import K8S, rendered
from tests.support.needed_tools import need_tool

MONITORING = K8S / "components" / "monitoring"
SUFFIXES = ("_bucket", "_count", "_sum")
OF_THE_TARGET = {"namespace", "pod"}


def rules() -> list[Any]:
    [group] = yaml.safe_load((MONITORING / "prometheusrule.yaml").read_text())["spec"]["groups"]
    found: list[Any] = group["rules"]
    return found


def dashboard() -> Any:
    return json.loads((MONITORING / "dashboard.json").read_text())


def panels() -> list[Any]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    shown = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [rule["expr"] for rule in rules()] + [one.replace("$__rate_interval", "5m") for one in shown]


def selectors(expression: str) -> list[tuple[str, set[str]]]:
    """Each metric of an expression with the labels that it is narrowed by."""
    found = re.findall(r"(ragherd_\w+)(?:\{([^}]*)\})?", expression)
    return [(name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))) for name, matchers in found]


@pytest.mark.parametrize("expression", expressions(), ids=str)
def test_an_expression_is_promql_over_metrics_and_labels_that_exist(expression: str) -> None:
    promql_parser.parse(expression)
    known = {spec.name: set(spec.labels) | ({"le"} if spec.type == "histogram" else set()) for spec in ALL_METRICS}
    histograms = {
        f"{spec.name}{suffix}": spec.name for spec in ALL_METRICS if spec.type == "histogram" for suffix in SUFFIXES
    }
    asked = selectors(expression)
    assert asked
    labels: set[str] = set()
    for name, narrowed in asked:
        assert name in known or name in histograms, name
        labels |= known[histograms.get(name, name)]
        assert narrowed <= known[histograms.get(name, name)] | OF_THE_TARGET, expression
    for grouped in re.findall(r"by \(([^)]*)\)", expression):
        assert {label.strip() for label in grouped.split(",")} <= labels | OF_THE_TARGET, expression


def test_every_alert_says_what_how_bad_and_where_to_begin() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert {"summary", "description", "runbook"} == set(rule["annotations"])
        assert len(rule["annotations"]["runbook"].split()) > 8, rule["alert"]
    assert len({rule["alert"] for rule in rules()}) == len(rules())


def test_the_rules_are_what_prometheus_takes_and_raise_what_they_should(tmp_path: Path) -> None:
    need_tool("promtool")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "ragherd", "rules": rules()}]}))
    shutil.copy(MONITORING / "rules.test.yaml", tmp_path)
    for command in (["check", "rules", "rules.yaml"], ["test", "rules", "rules.test.yaml"]):
        done = subprocess.run(["promtool", *command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_raised_in_the_rules_test() -> None:
    tested = (MONITORING / "rules.test.yaml").read_text()
    assert [rule["alert"] for rule in rules() if rule["alert"] not in tested] == []


def test_a_runbook_names_only_metrics_and_pages_that_exist() -> None:
    names = {spec.name for spec in ALL_METRICS}
    for rule in rules():
        text = " ".join(rule["annotations"].values())
        assert {name.removesuffix("_bucket") for name in re.findall(r"ragherd_\w+", text)} <= names, rule["alert"]
        assert all((K8S.parent / page).exists() for page in re.findall(r"docs/[\w-]+\.md", text))


def test_the_pod_monitor_scrapes_the_metrics_port() -> None:
    manifests = rendered("overlays/production")
    [endpoint] = manifests.named("PodMonitor")["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in {port["name"] for port in manifests.container()["ports"]}


def test_the_autoscalers_metric_is_one_and_the_adapter_gives_it() -> None:
    [scaler] = rendered("overlays/production").kind("HorizontalPodAutoscaler")
    [pods] = [one["pods"] for one in scaler["spec"]["metrics"] if one["type"] == "Pods"]
    assert pods["metric"]["name"] in {spec.name for spec in ALL_METRICS if spec.type == "gauge"}
    adapter = yaml.safe_load((MONITORING / "prometheus-adapter.yaml").read_text())
    [rule] = adapter["rules"]["custom"]
    assert rule["seriesQuery"].startswith(pods["metric"]["name"])


def test_the_dashboard_is_found_by_grafana() -> None:
    found = rendered("overlays/production").kind("ConfigMap")
    [board] = [each for each in found if each["metadata"]["name"] == "grafana-ragherd"]
    assert board["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(board["data"]["ragherd.json"]) == dashboard()


def test_every_panel_says_what_it_shows_and_covers_no_other() -> None:
    assert len({panel["id"] for panel in dashboard()["panels"]}) == len(dashboard()["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        assert panel["title"]
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
