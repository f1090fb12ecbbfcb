"""Alerts and the dashboard use existing metrics, and the alerts fire when they should."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from api.observability.metric_names import ALL_METRICS
from scripts.generate_monitoring import monitoring_files
from tests.k8s.rendered import K8S, rendered
from tests.support.needed_tools import need_tool

pytestmark = pytest.mark.once(reason="checks files that kubectl and helm render")

MONITORING = K8S / "components" / "monitoring"
RUNBOOKS = K8S.parent / "docs" / "runbooks.md"
SUFFIXES = ("_bucket", "_count", "_sum")
OF_THE_TARGET = {"namespace", "pod", "job", "instance"}


def groups() -> list[Any]:
    found: list[Any] = yaml.safe_load((MONITORING / "rules.yaml").read_text())["groups"]
    return found


def rules() -> list[Any]:
    return [rule for group in groups() for rule in group["rules"]]


def alerts() -> list[Any]:
    return [rule for rule in rules() if "alert" in rule]


def recorded() -> set[str]:
    return {rule["record"] for rule in rules() if "record" in rule}


def cases() -> dict[str, Any]:
    """The cases of rules.test.yaml by name."""
    tests = yaml.safe_load((MONITORING / "rules.test.yaml").read_text())["tests"]
    return {case["name"]: case for case in tests}


def sections() -> dict[str, str]:
    """The runbooks of the alerts by heading."""
    parts = re.split(r"^### (Ragherd\w+)$", RUNBOOKS.read_text(), flags=re.MULTILINE)
    return {name: re.split(r"^## ", text, flags=re.MULTILINE)[0] for name, text in pairwise(parts) if name[0] == "R"}


def dashboards() -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text()) for path in sorted((MONITORING / "dashboards").glob("*.json"))}


def panels(board: Any) -> list[Any]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    each = (panel for board in dashboards().values() for panel in panels(board))
    shown = dict.fromkeys(target["expr"] for panel in each for target in panel["targets"])
    return [rule["expr"] for rule in rules()] + [one.replace("$__rate_interval", "5m") for one in shown]


def selectors(expression: str) -> list[tuple[str, set[str]]]:
    """Each metric of an expression with the labels that it is narrowed by."""
    found = re.findall(r"(?<![\w:])(ragherd_\w+)(?:\{([^}]*)\})?", expression)
    return [(name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))) for name, matchers in found]


@pytest.mark.parametrize("expression", expressions(), ids=str)
def test_an_expression_is_promql_over_metrics_and_labels_that_exist(expression: str) -> None:
    promql_parser.parse(expression)
    known = {spec.name: set(spec.labels) | ({"le"} if spec.type == "histogram" else set()) for spec in ALL_METRICS}
    histograms = {
        f"{spec.name}{suffix}": spec.name for spec in ALL_METRICS if spec.type == "histogram" for suffix in SUFFIXES
    }
    asked, records = selectors(expression), re.findall(r"\w+:ragherd_\w+:\w+", expression)
    assert asked or records or "ALERTS" in expression
    assert set(records) <= recorded()
    labels: set[str] = set()
    for name, narrowed in asked:
        assert name in known or name in histograms, name
        labels |= known[histograms.get(name, name)]
        assert narrowed <= known[histograms.get(name, name)] | OF_THE_TARGET, expression
    for grouped in re.findall(r"by \(([^)]*)\)", expression):
        assert {label.strip() for label in grouped.split(",")} <= labels | OF_THE_TARGET, expression


def test_every_alert_says_what_how_bad_and_where_to_read_on() -> None:
    site = re.findall(r"^site_url: (\S+)$", (K8S.parent / "mkdocs.yml").read_text(), re.MULTILINE)[0]
    for rule in alerts():
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert {"summary", "description", "runbook_url"} == set(rule["annotations"])
        assert rule["annotations"]["runbook_url"] == f"{site}runbooks/#{rule['alert'].lower()}"
        assert rule["annotations"]["description"].endswith((".", "?"))
    assert len({rule["alert"] for rule in alerts()}) == len(alerts())


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    assert sorted(sections()) == sorted(rule["alert"] for rule in alerts())
    for name, text in sections().items():
        assert [part in text for part in ("**Means:** ", "**Over when** ")] == [True, True], name
        assert re.search(r"\*\*(Do|Look and do):\*\* ", text), name
        assert "```sh\n" in text, name


def test_a_runbook_names_only_metrics_that_exist() -> None:
    names = {spec.name for spec in ALL_METRICS}
    for name, text in sections().items():
        found = re.findall(r"ragherd_\w+", text)
        assert all(any(known.startswith(one) for known in names) for one in found), name


def test_the_commands_of_the_runbooks_name_what_production_deploys() -> None:
    manifests = rendered("overlays/production")
    deployed = {f"{each['kind'].lower()}/{each['metadata']['name']}" for each in manifests.all}
    pods = {f"{each['metadata']['name']}-0" for each in manifests.kind("StatefulSet")}
    labels = {pod["metadata"]["labels"]["app.kubernetes.io/name"] for pod in manifests.pods().values()}
    text = RUNBOOKS.read_text()
    commands = re.findall(r"kubectl (-n .+?)(?:`|\n)", text)
    assert len(commands) > 15
    for command in commands:
        assert command.startswith("-n ragherd "), command
        assert set(re.findall(r"app\.kubernetes\.io/name=([\w-]+)", command)) <= labels, command
        assert set(re.findall(r"\bdeployment/[\w-]+", command)) <= deployed, command
        assert set(re.findall(r"\b(?:exec(?: -it)?|logs|delete pod) ([\w-]+-\d)\b", command)) <= pods, command
    key = "/etc/redis-secret/password"
    assert key in text
    mounts = manifests.pods()["redis"]["spec"]["containers"][0]["volumeMounts"]
    assert any(key.startswith(mount["mountPath"]) for mount in mounts)


def test_the_rules_are_what_prometheus_takes_and_raise_what_they_should() -> None:
    need_tool("promtool")
    for command in (["check", "rules", "rules.yaml"], ["test", "rules", "rules.test.yaml"]):
        done = subprocess.run(["promtool", *command], cwd=MONITORING, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_the_configuration_of_docker_compose(tmp_path: Path) -> None:
    need_tool("promtool")
    for path in (MONITORING / "compose" / "prometheus.yaml", MONITORING / "rules.yaml"):
        shutil.copy(path, tmp_path)
    command = ["promtool", "check", "config", "prometheus.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules())} rules found" in done.stdout


@pytest.mark.parametrize("alert", [rule["alert"] for rule in alerts() if rule["alert"] != "RagherdNotScraped"])
def test_an_alert_is_tested_firing_and_not_firing(alert: str) -> None:
    case = cases()[alert]
    spaces = {
        space for series in case["input_series"] for space in re.findall(r'namespace="([\w-]+)"', series["series"])
    }
    assert {"bad", "good"} <= spaces
    [expected] = case["promql_expr_test"]
    assert expected["expr"] == f'count by (namespace) (ALERTS{{alertname="{alert}", alertstate="firing"}})'
    assert {sample["labels"] for sample in expected["exp_samples"]} == {
        f'{{namespace="{space}"}}' for space in spaces if space.startswith("bad")
    }
    [rule] = [rule for rule in alerts() if rule["alert"] == alert]
    early = [one["exp_alerts"] for one in case.get("alert_rule_test", ())]
    assert early == ([[]] if "for" in rule else [])


def test_the_alert_for_missing_pods_is_tested_firing_and_not_firing() -> None:
    assert {"nobody is there", "one namespace of two is gone"} <= set(cases())


def test_the_error_budget_counts_what_users_call_and_not_what_operators_do() -> None:
    [rule] = [rule for rule in rules() if rule.get("record") == "namespace:ragherd_request_errors:ratio_rate5m"]
    pattern = re.compile(re.findall(r'route=~"([^"]+)"', rule["expr"])[0])
    listed = [line.split(" | ") for line in (K8S.parent / "docs" / "http-api.md").read_text().splitlines()]
    asked = {
        path: line[1] == "user" or path.startswith("/documents")
        for line in listed
        if len(line) == 3 and line[1] in {"user", "admin", "operator", "all"}
        for path in re.findall(r"`(?:GET|POST|DELETE) (/[^`]*)`", line[0])
    }
    assert len(asked) > 30
    catalog = {"/api/tags", "/api/ps", "/api/show", "/api/version", "/api/semantic-cache/explain"}
    assert {path for path in asked if pattern.fullmatch(path)} == {path for path in asked if asked[path]} - catalog


def test_the_pod_monitor_scrapes_the_metrics_port() -> None:
    manifests = rendered("overlays/production")
    [endpoint] = manifests.named("PodMonitor")["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in {port["name"] for port in manifests.container()["ports"]}


def test_the_dashboards_are_found_by_grafana() -> None:
    found = rendered("overlays/production").kind("ConfigMap")
    [boards] = [each for each in found if each["metadata"]["name"] == "grafana-ragherd"]
    assert boards["metadata"]["labels"]["grafana_dashboard"] == "1"
    expected = {f"ragherd-{name}.json": board for name, board in dashboards().items()}
    assert {name: json.loads(text) for name, text in boards["data"].items()} == expected
    assert set(dashboards()) == {"overview", "cache-quality", "breaker-and-ollama", "capacity"}


@pytest.mark.parametrize("path", monitoring_files(), ids=lambda path: path.name)
def test_a_generated_file_is_up_to_date(path: Path) -> None:
    assert path.read_text() == monitoring_files()[path], "run: python -m scripts.generate_monitoring"


def test_the_operator_gets_the_rules_that_promtool_tests() -> None:
    manifest = yaml.safe_load((MONITORING / "prometheusrule.yaml").read_text())
    assert manifest["spec"] == yaml.safe_load((MONITORING / "rules.yaml").read_text())


@pytest.mark.parametrize("board", dashboards().values(), ids=dashboards())
def test_a_dashboard_is_chosen_by_namespace_job_and_instance(board: Any) -> None:
    names = [variable["name"] for variable in board["templating"]["list"]]
    assert names == ["datasource", "namespace", "job", "instance"]
    for panel in panels(board):
        for target in panel["targets"]:
            expression = target["expr"]
            chosen = re.findall(r"\bragherd_\w+\{([^}]*)\}", expression)
            for matchers in chosen:
                assert 'namespace=~"$namespace"' in matchers
                assert ":" in expression or 'job=~"$job", instance=~"$instance"' in matchers, expression
            assert chosen or "ALERTS" in expression or 'namespace=~"$namespace"' in expression


def test_the_dashboards_have_each_an_identity() -> None:
    for name in ("uid", "title"):
        assert len({board[name] for board in dashboards().values()}) == len(dashboards())


@pytest.mark.parametrize("board", dashboards().values(), ids=dashboards())
def test_every_panel_says_what_it_shows_and_covers_no_other(board: Any) -> None:
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in panels(board):
        assert panel["title"]
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
