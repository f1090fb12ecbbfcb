"""Writes the generated files of k8s/components/monitoring: Grafana's dashboards, and the rules for the operator.

    .venv/bin/python -m scripts.generate_monitoring

The sources are grafana_dashboards.py and k8s/components/monitoring/rules.yaml. A test fails if a file is out of date.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from scripts.grafana_dashboards import BOARDS
from scripts.grafana_panels import GrafanaBoard, GrafanaPanel

ROOT: Final = Path(__file__).parents[1]
MONITORING: Final = ROOT / "k8s" / "components" / "monitoring"
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
TARGET: Final = 'namespace=~"$namespace", job=~"$job", instance=~"$instance"'
SIZES: Final = {"stat": (4, 4), "timeseries": (8, 8), "state-timeline": (8, 8)}
"""Width and height of a panel; a row is 24 wide."""
COLORS: Final = ("green", "yellow", "red")
RULE_HEAD: Final = """\
# Written by python -m scripts.generate_monitoring from rules.yaml.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: ragherd
  labels:
    app.kubernetes.io/name: ragherd
    app.kubernetes.io/part-of: ragherd
spec:
"""


def main() -> int:
    """Writes every outdated file and prints its path."""
    for path, text in monitoring_files().items():
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            print(path.relative_to(ROOT))
    return 0


def monitoring_files() -> dict[Path, str]:
    """Returns the text of each generated file."""
    rules = (MONITORING / "rules.yaml").read_text()
    groups = rules[rules.index("groups:") :]
    boards = {
        MONITORING / "dashboards" / f"{board.name}.json": json.dumps(dashboard(board), indent=1) + "\n"
        for board in BOARDS
    }
    return {MONITORING / "prometheusrule.yaml": RULE_HEAD + textwrap.indent(groups, "  "), **boards}


def dashboard(board: GrafanaBoard) -> dict[str, Any]:
    """Returns a dashboard as Grafana reads it."""
    return {
        "uid": board.uid,
        "title": board.title,
        "description": board.description,
        "tags": ["ragherd"],
        "timezone": "browser",
        "editable": True,
        "graphTooltip": 1,
        "schemaVersion": 39,
        "version": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": _variables()},
        "annotations": {"list": [_alerts()]},
        "links": [_links()],
        "panels": [{"id": number, **panel} for number, panel in enumerate(_placed(board), 1)],
    }


def _variables() -> list[dict[str, Any]]:
    """Namespace, job and instance; each may be All, which also matches series without the label."""
    chosen, names = "", []
    for name in ("namespace", "job", "instance"):
        names.append(
            {
                "name": name,
                "type": "query",
                "label": name.capitalize(),
                "datasource": SOURCE,
                "query": f"label_values(ragherd_build_info{{{chosen}}}, {name})",
                "refresh": 2,
                "sort": 1,
                "hide": 0,
                "multi": True,
                "includeAll": True,
                "allValue": ".*",
                "current": {"text": "All", "value": "$__all"},
            }
        )
        chosen += f'{", " if chosen else ""}{name}=~"${name}"'
    return [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source", "hide": 0},
        *names,
    ]


def _alerts() -> dict[str, Any]:
    return {
        "name": "Alerts",
        "datasource": SOURCE,
        "enable": True,
        "hide": False,
        "iconColor": "red",
        "expr": 'ALERTS{alertname=~"Ragherd.*", alertstate="firing"}',
        "titleFormat": "{{alertname}}",
        "step": "60s",
    }


def _links() -> dict[str, Any]:
    return {
        "title": "Ragherd",
        "type": "dashboards",
        "tags": ["ragherd"],
        "icon": "dashboard",
        "tooltip": "",
        "url": "",
        "asDropdown": False,
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
    }


def _placed(board: GrafanaBoard) -> Iterator[dict[str, Any]]:
    """Yields the rows and panels with their places, left to right and top to bottom."""
    top = 0
    for heading, panels in board.rows:
        place = {"h": 1, "w": 24, "x": 0, "y": top}
        yield {"type": "row", "title": heading, "collapsed": False, "gridPos": place, "panels": []}
        top, left, height = top + 1, 0, 0
        for panel in panels:
            width, height = SIZES[panel.kind]
            if left + width > 24:
                top, left = top + height, 0
            yield {**_panel(panel), "gridPos": {"h": height, "w": width, "x": left, "y": top}}
            left += width
        top += height


def _panel(panel: GrafanaPanel) -> dict[str, Any]:
    targets = [
        {
            "refId": "ABCDEFGH"[number],
            "datasource": SOURCE,
            "expr": query.expr.replace("@", TARGET),
            "legendFormat": query.legend,
        }
        for number, query in enumerate(panel.queries)
    ]
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _options(panel),
        "targets": targets,
    }


def _defaults(panel: GrafanaPanel) -> dict[str, Any]:
    found: dict[str, Any] = {"unit": panel.unit, "min": 0}
    steps: list[dict[str, Any]] = [{"color": COLORS[0], "value": None}]
    if panel.kind == "stat":
        steps += [{"color": color, "value": limit} for color, limit in zip(COLORS[1:], panel.limits, strict=False)]
        return {**found, "thresholds": {"mode": "absolute", "steps": steps}, "color": {"mode": "thresholds"}}
    if panel.names:
        options = {str(value): {"text": text, "color": color, "index": value} for value, text, color in panel.names}
        steps += [{"color": color, "value": value} for value, _, color in panel.names[1:]]
        mapping = {"type": "value", "options": options}
        return {**found, "mappings": [mapping], "thresholds": {"mode": "absolute", "steps": steps}}
    custom: dict[str, Any] = {"fillOpacity": 10, "lineWidth": 1, "showPoints": "never"}
    if panel.stacked:
        custom |= {"stacking": {"mode": "normal", "group": "A"}, "fillOpacity": 40}
    if panel.limits:
        custom |= {"thresholdsStyle": {"mode": "line"}}
        steps += [{"color": "red", "value": limit} for limit in panel.limits]
        found |= {"thresholds": {"mode": "absolute", "steps": steps}}
    return {**found, "custom": custom}


def _options(panel: GrafanaPanel) -> dict[str, Any]:
    if panel.kind == "stat":
        return {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "colorMode": "value",
            "graphMode": "area",
            "justifyMode": "auto",
            "orientation": "auto",
            "textMode": "auto",
        }
    legend = {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": True}
    tooltip = {"mode": "multi", "sort": "desc"}
    if panel.kind == "state-timeline":
        return {"legend": legend, "tooltip": tooltip, "mergeValues": True, "showValue": "auto", "rowHeight": 0.8}
    return {"legend": legend, "tooltip": tooltip}


if __name__ == "__main__":
    sys.exit(main())
