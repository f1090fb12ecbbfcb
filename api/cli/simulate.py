"""`ragherd simulate`: a discrete-event simulation of many replicas on one Redis, based on measured costs."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from api.cli.main import USAGE_ERROR, exit_with
from api.cli.plan import CostsFile, costs_or_exit, json_value
from api.scaling.plan import Demand

if TYPE_CHECKING:
    from api.scaling.simulation import SimulationResult

BUSY_SHARE = 0.7


def simulate(
    replicas: Annotated[list[int] | None, typer.Option(min=1, help="Number of replicas. Can be repeated.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Workers of each replica.")] = 4,
    rate: Annotated[float, typer.Option(min=0.0, help="Requests per second to each replica.")] = 0.0,
    exact: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of requests that are exact hits.")] = 0.3,
    semantic: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share that are semantic hits.")] = 0.2,
    entries: Annotated[int, typer.Option(min=0, help="Cached answers.")] = 1000,
    chunks: Annotated[int, typer.Option(min=0, help="Chunks of documents.")] = 0,
    backends: Annotated[int, typer.Option(min=1, help="URLs in OLLAMA_BASE_URL.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the first run.")] = 1,
    seeds: Annotated[int, typer.Option(min=1, help="Number of runs, each with its own seed.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.1, help="Simulated seconds, without the warm-up.")] = 5.0,
    costs: CostsFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each run.")] = False,
) -> None:
    """Simulate one Redis under 10 to 1,000 replicas: its load, and how fast all replicas see a breaker change state."""
    try:
        from api.scaling.simulation import simulate as run
    except ModuleNotFoundError:
        raise exit_with("simulate needs simpy: pip install 'ragherd[scaling]'", USAGE_ERROR) from None
    known, runs = costs_or_exit(costs), []
    for size in replicas or (10, 50, 100, 200, 500, 1000):
        try:
            demand = Demand(rate * size, exact, semantic, 0.0, entries, chunks, size, workers, backends)
        except ValueError as error:
            raise exit_with(str(error), USAGE_ERROR) from None
        found = [run(demand, known, seed + number, seconds=seconds) for number in range(seeds)]
        runs.append((demand, found))
        if as_json:
            for number, outcome in enumerate(found):
                named = {"replicas": size, "workers": demand.fleet, "rate": demand.rate, "seed": seed + number}
                typer.echo(json.dumps(json_value({**named, **asdict(outcome)})))
    if not as_json:
        _show(runs)


def _show(runs: list[tuple[Demand, list[SimulationResult]]]) -> None:
    titles = ("replicas", "workers", "requests/s", "work/s", "Redis load", "p50 ms", "p99 ms")
    table = Table(*titles, "all see it p50 ms", "p99 ms", "last ms", "late", box=None, pad_edge=False)
    for column in table.columns:
        column.justify = "right"
    for demand, found in runs:
        spans = (
            [one.work for one in found],
            [100 * one.utilisation for one in found],
            *([getattr(one, name) for one in found] for name in ("p50", "p99")),
            *([getattr(one, name) for one in found] for name in ("notice_p50", "notice_p99", "notice_most")),
        )
        late = max(one.late + one.unheard for one in found)
        table.add_row(f"{demand.replicas:,}", f"{demand.fleet:,}", f"{demand.rate:g}", *map(_span, spans), f"{late:,}")
    console = Console(width=150)
    console.print(table)
    console.print(_first_limit(runs))


def _span(values: list[float]) -> str:
    low, high = min(values), max(values)
    digits = 0 if high >= 100 else 1 if high >= 10 else 2
    least, most = ("never" if math.isinf(one) else f"{one:,.{digits}f}" for one in (low, high))
    return least if least == most else f"{least}-{most}"


def _first_limit(runs: list[tuple[Demand, list[SimulationResult]]]) -> str:
    for demand, found in runs:
        if any(one.utilisation > BUSY_SHARE or one.late or one.unheard for one in found):
            why = "commands later than REDIS_TIMEOUT" if any(one.late for one in found) else "Redis's main thread"
            return f"First limit: {why}, at {demand.replicas:,} replicas ({demand.fleet:,} workers)."
    return "None of these fleets reaches a limit of Redis's main thread."
