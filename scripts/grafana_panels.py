"""What Grafana's dashboards are built from: panels, and expressions in PromQL.

In an expression, `@` stands for the dashboard's variables: `{@}` selects the chosen namespaces, jobs and instances.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["stat", "timeseries", "state-timeline"]


@dataclass(frozen=True, slots=True)
class GrafanaQuery:
    """A query in PromQL. `legend` may name labels, such as `{{pod}}`."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class GrafanaPanel:
    """`limits`: values from which a stat is yellow and red, or lines of a graph. `names`: texts for values."""

    title: str
    description: str
    unit: str
    queries: tuple[GrafanaQuery, ...]
    kind: Kind = "timeseries"
    stacked: bool = False
    limits: tuple[float, ...] = ()
    names: tuple[tuple[int, str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class GrafanaBoard:
    """A dashboard. `rows`: the headings, and the panels below each."""

    name: str
    uid: str
    title: str
    description: str
    rows: tuple[tuple[str, tuple[GrafanaPanel, ...]], ...]


def stat(title: str, description: str, unit: str, expr: str, *limits: float) -> GrafanaPanel:
    """A panel with one number."""
    return GrafanaPanel(title, description, unit, (GrafanaQuery(expr),), "stat", limits=limits)


def graph(
    title: str,
    description: str,
    unit: str,
    *queries: tuple[str, str],
    stacked: bool = False,
    lines: float | None = None,
) -> GrafanaPanel:
    """A panel with lines over time. `queries` are pairs of legend and expression."""
    made = tuple(GrafanaQuery(expr, legend) for legend, expr in queries)
    return GrafanaPanel(title, description, unit, made, stacked=stacked, limits=() if lines is None else (lines,))


def rate(metric: str, by: str = "", extra: str = "") -> str:
    """The growth per second of a counter, summed, or by labels."""
    chosen = f"@, {extra}" if extra else "@"
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{{{chosen}}}[$__rate_interval]))"


def quantile(share: float, histogram: str, by: str = "", extra: str = "") -> str:
    """A percentile of a histogram, of all pods together."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, {rate(f'{histogram}_bucket', labels, extra)})"
