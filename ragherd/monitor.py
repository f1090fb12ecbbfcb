"""`ragherd monitor`: a live view of the fleet in the terminal, or one line per refresh without a terminal."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Final, NamedTuple

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ragherd.breaker import PATH as BREAKER_PATH
from ragherd.breaker import breaker_table
from ragherd.fleet import breakers_line, bulkhead_line, cache_line, pool_line, snapshot
from ragherd.service_client import (
    AsJson,
    RequestRefused,
    ServiceClient,
    Unreachable,
    Url,
    clean,
    connected,
    moment,
    new_table,
    print_document,
    terminal,
)

HISTORY: Final = "/api/history"
STEP_SECONDS: Final = 300
"""Latencies are those of the latest five minutes with an answer, within an hour."""
QUANTILES: Final = ("p50", "p95", "p99")
FIRST: Final = frozenset({"hit"})
"""Cache statuses that are shown before the others."""
BARS: Final = "▁▂▃▄▅▆▇█"
KEPT: Final = 60
"""Refreshes that the bar chart of queries per second covers."""
CHANGES: Final = 3
COLORS: Final = {"healthy": "green", "degraded": "yellow", "unhealthy": "red"}


class Latency(NamedTuple):
    """The `QUANTILES` of a cache status in milliseconds, and when their five minutes began."""

    since: str
    quantiles: tuple[float, ...]

    def texts(self) -> tuple[str, ...]:
        """Returns the quantiles for output."""
        return tuple(f"{one:,.0f}" if one >= 100 else f"{one:.1f}" for one in self.quantiles)


@dataclass(slots=True)
class View:
    """The figures shown, and the counts of the last refreshes."""

    found: dict[str, Any] | None = None
    fault: str = ""
    at: float = 0.0
    queries: float | None = None
    rates: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    latency: dict[str, Latency] = field(default_factory=dict)
    changes: list[dict[str, Any]] = field(default_factory=list)

    def refresh(self, service: ServiceClient, now: float) -> None:
        """Reads everything. Raises `Unreachable`, and `RequestRefused` if the address is not Ragherd's."""
        self.found, self.fault = snapshot(service), ""
        self._count_queries(now)
        with suppress(RequestRefused):  # Redis is down: the last known ones stay
            self.changes = service.get(f"{BREAKER_PATH}/history", limit=CHANGES)["transitions"]
        with suppress(RequestRefused):  # or the history is off
            self.latency = latencies(service.get(HISTORY, step=STEP_SECONDS)["points"])

    def _count_queries(self, now: float) -> None:
        cache = (self.found or {}).get("cache")
        if cache is None:
            return
        total = float(sum(cache[name] for name in ("hits", "misses", "stale_hits", "coalesced")))
        if self.queries is not None and now > self.at:
            self.rates.append(max(0.0, total - self.queries) / (now - self.at))
        self.queries, self.at = total, now


# -- Figures -----------------------------------------------------------------------------------------------------------


def latencies(points: Iterable[Mapping[str, Any]]) -> dict[str, Latency]:
    """Returns the latest latencies of each cache status from the points of the history, which are in order."""
    found: dict[str, Latency] = {}
    for point in points:
        for status, times in point.get("latency_ms", {}).items():
            found[status] = Latency(point["at"], tuple(times[name] for name in QUANTILES))
    return {status: found[status] for status in sorted(found, key=lambda one: (one not in FIRST, one))}


def bars(values: Iterable[float]) -> str:
    """Returns values as a bar chart of one line."""
    known = list(values)
    highest = max(known, default=0.0)
    return "".join(BARS[round(value / highest * (len(BARS) - 1))] if highest else BARS[0] for value in known)


# -- Rendering ---------------------------------------------------------------------------------------------------------


def line(view: View) -> str:
    """Returns a view as one line of names and figures."""
    clock = f"{datetime.now().astimezone():%H:%M:%S}"
    if view.found is None or view.fault:
        return f"{clock} {view.fault}"
    found = view.found
    times = [f"{status} {'/'.join(one.texts())}" for status, one in view.latency.items()]
    parts = [
        found["breaker"] and breakers_line(found["breaker"]["breakers"]),
        found["cache"] and f"{100 * found['cache']['hit_rate']:.1f} % hits",
        f"{view.rates[-1]:.1f} queries/s" if view.rates else None,
        f"p50/p95/p99 ms: {', '.join(times) or 'not known'}",
        found["bulkhead"] and f"bulkhead {bulkhead_line(found['bulkhead'])}",
        found["pool"] and f"pool {pool_line(found['pool'])}",
        found["workers"] and f"{len(found['workers'])} workers",
    ]
    return f"{clock} {found['health']['status']}; {'; '.join(part for part in parts if part)}"


def render(view: View) -> RenderableType:
    """Returns a view as panels for a terminal."""
    if view.found is None:
        return Text(view.fault)
    found = view.found
    health = found["health"]
    head = Text(f"{health['status']}  ", style=f"bold {COLORS.get(health['status'], 'red')}")
    head.append(f"{found['url']}, version {health['version']}, {datetime.now().astimezone():%H:%M:%S}", style="dim")
    if view.fault:
        head = Text(f"{view.fault}; the figures are old", style="bold red")
    warnings = [Text(f"warning: {one['advice']}", style="yellow") for one in health["redis_warnings"]]
    columns = Table.grid(expand=True)
    columns.add_column(ratio=2)
    columns.add_column(ratio=3)
    load = Group(_panel("calls to Ollama", _load(view)), _panel("workers", _workers(view)))
    columns.add_row(_panel("recent latency of the fleet, ms", _latency(view)), load)
    panels = (_panel("circuit breakers", _breakers(view)), _panel("semantic cache", _cache(view)), columns)
    return Group(head, *panels, *warnings, Text("Ctrl-C stops.", style="dim"))


def _panel(title: str, content: RenderableType) -> Panel:
    return Panel(content, title=title, title_align="left")


def _breakers(view: View) -> RenderableType:
    breaker = view.found and view.found["breaker"]
    if not breaker:
        return Text("not known")
    table = breaker_table(breaker["breakers"])
    changes = Table.grid(padding=(0, 2))
    for one in view.changes:
        changes.add_row(moment(one["time"]), f"{one['from']} -> {one['to']}", Text(clean(one["reason"])))
    return Group(table, changes) if view.changes else table


def _cache(view: View) -> RenderableType:
    cache = view.found and view.found["cache"]
    rate = f"{view.rates[-1]:.1f} queries/s  " if view.rates else "queries/s not known yet  "
    return Group(Text(cache_line(cache) if cache else "not known"), Text(rate + bars(view.rates)))


def _latency(view: View) -> RenderableType:
    if not view.latency:
        return Text("not known")
    table = new_table("cache", *QUANTILES, "since")
    for status, one in view.latency.items():
        table.add_row(status, *one.texts(), f"{one.since[11:16]} UTC")
    return table


def _load(view: View) -> RenderableType:
    found = view.found or {}
    lines = (
        f"bulkhead  {bulkhead_line(found['bulkhead']) if found['bulkhead'] else 'not known'}",
        f"pool      {pool_line(found['pool']) if found['pool'] else 'not known'}",
    )
    return Text("\n".join(lines))


def _workers(view: View) -> RenderableType:
    workers = view.found and view.found["workers"]
    if not workers:
        return Text("not known")
    table = new_table("host", "workers", "requests", "active", "idle", "waiting")
    for host in sorted({one["host"] for one in workers}):
        own = [one for one in workers if one["host"] == host]
        pool = (sum(one["pool"].get(name, 0) for one in own) for name in ("active", "idle", "waiting"))
        table.add_row(host, str(len(own)), f"{sum(one['requests'] for one in own):,}", *map(str, pool))
    return table


# -- Command -----------------------------------------------------------------------------------------------------------


def monitor(
    interval: Annotated[float, typer.Option(min=0.2, max=60.0, help="Seconds between two refreshes.")] = 2.0,
    count: Annotated[int | None, typer.Option(min=1, help="Refreshes until it stops. Default: until Ctrl-C.")] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Watch the fleet: breakers, cache, latency, calls to Ollama and workers. Ctrl-C stops it.

    If the output is not a terminal, each refresh prints one line. --json prints the figures once, as `status` does.
    """
    with connected(url) as service:
        if as_json:
            print_document(snapshot(service))
            return
        view, console = View(), terminal()
        view.refresh(service, time.monotonic())
        if console.is_terminal and not console.is_dumb_terminal:
            _show_live(service, view, console, interval, count)
        else:
            _print_lines(service, view, interval, count)


def _show_live(service: ServiceClient, view: View, console: Console, interval: float, count: int | None) -> None:
    """Shows the view on the whole terminal. Ctrl-C restores the terminal and prints the last figures in one line."""
    with suppress(KeyboardInterrupt), Live(render(view), console=console, screen=True, auto_refresh=False) as live:
        for _ in _refreshes(service, view, interval, count):
            live.update(render(view), refresh=True)
    typer.echo(line(view))


def _print_lines(service: ServiceClient, view: View, interval: float, count: int | None) -> None:
    with suppress(KeyboardInterrupt):
        typer.echo(line(view))
        for _ in _refreshes(service, view, interval, count):
            typer.echo(line(view))


def _refreshes(service: ServiceClient, view: View, interval: float, count: int | None) -> Iterator[None]:
    """Refreshes the view. If the service goes away, says so and waits for it."""
    done = 1
    while count is None or done < count:
        time.sleep(interval)
        try:
            view.refresh(service, time.monotonic())
        except (Unreachable, RequestRefused) as error:
            view.fault = str(error)
        done += 1
        yield
