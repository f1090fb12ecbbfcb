"""`ragherd plan` and `ragherd simulate`: what a load needs, and what a fleet does, from measured costs.

`plan` calculates the workers, Redis and GPUs. `simulate` is a discrete-event simulation of many replicas on one Redis.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from api.scaling.costs import Costs, CostsUnreadable, load_costs
from api.scaling.plan import Capacity, Demand, Plan
from api.scaling.plan import plan as planned
from ragherd.exits import USAGE_ERROR, exit_with

if TYPE_CHECKING:
    from api.scaling.simulation import SimulationResult

BUSY_SHARE: Final = 0.7

CostsFile = Annotated[
    Path | None,
    typer.Option("--costs", help="File written by scripts/measure_costs.py. Without it, the costs in this release."),
]


def costs_or_exit(path: Path | None) -> Costs:
    """Returns the costs, or ends the command with one line."""
    try:
        return load_costs(path)
    except CostsUnreadable as error:
        raise exit_with(str(error), USAGE_ERROR) from None


def json_value(value: Any) -> Any:
    """Replaces infinity with null, which JSON needs."""
    if isinstance(value, dict):
        return {name: json_value(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# -- Plan --------------------------------------------------------------------------------------------------------------


def plan(
    rate: Annotated[float, typer.Option(min=0.0, help="Requests per second.")],
    exact: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of requests that are exact hits.")] = 0.3,
    semantic: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of requests that are semantic hits.")] = 0.2,
    refresh: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of hits that are refreshed.")] = 0.0,
    entries: Annotated[int, typer.Option(min=0, help="Cached answers.")] = 1000,
    chunks: Annotated[int, typer.Option(min=0, help="Chunks of documents. A document of 10 pages has about 30.")] = 0,
    replicas: Annotated[int, typer.Option(min=1, help="Replicas of the service.")] = 2,
    workers: Annotated[int, typer.Option(min=1, help="Workers of each replica, each with one core.")] = 4,
    backends: Annotated[int, typer.Option(min=1, help="URLs in OLLAMA_BASE_URL.")] = 1,
    embeds_on_ollama: Annotated[
        bool, typer.Option("--embeds-on-ollama", help="Ollama computes the embeddings (EMBEDDER=ollama).")
    ] = False,
    answer_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 250,
    tokens_per_second: Annotated[
        float, typer.Option(min=0.001, help="Tokens per second of one slot when all are busy.")
    ] = 40.0,
    first_token: Annotated[float, typer.Option(min=0.0, help="Seconds until the first token.")] = 0.5,
    slots: Annotated[int, typer.Option(min=1, help="OLLAMA_NUM_PARALLEL of one GPU.")] = 4,
    gpus: Annotated[int | None, typer.Option(min=1, help="Number of GPUs. Without it, as many as needed.")] = None,
    maxclients: Annotated[int, typer.Option(min=1, help="maxclients of Redis.")] = 10_000,
    max_connections: Annotated[int, typer.Option(min=1, help="REDIS_MAX_CONNECTIONS.")] = 64,
    redis_gib: Annotated[float, typer.Option(min=0.001, help="Memory of Redis, in GiB.")] = 8.0,
    network_gbit: Annotated[float, typer.Option(min=0.001, help="Network bandwidth of Redis, in Gbit/s.")] = 10.0,
    costs: CostsFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Estimate the workers, Redis memory and GPUs that a load needs, and name the first limit."""
    known = costs_or_exit(costs)
    try:
        demand = Demand(
            *(rate, exact, semantic, refresh, entries, chunks, replicas, workers, backends, embeds_on_ollama),
            *(answer_tokens, tokens_per_second, first_token, slots),
        )
        capacity = Capacity(
            maxclients=maxclients,
            max_connections=max_connections,
            redis_bytes=redis_gib * 2**30,
            network_gbit=network_gbit,
            gpus=gpus,
        )
    except ValueError as error:
        raise exit_with(str(error), USAGE_ERROR) from None
    found = planned(demand, known, capacity)
    if as_json:
        typer.echo(json.dumps(json_value({"demand": asdict(demand), "machine": known.machine, "plan": asdict(found)})))
    else:
        _show_plan(demand, known, found)


def _show_plan(demand: Demand, costs: Costs, found: Plan) -> None:
    """Prints a plan as tables."""
    console, machine = Console(), costs.machine
    console.print(
        f"{demand.rate:g} requests/s, {demand.exact:.0%} exact and {demand.semantic:.0%} semantic hits, "
        f"{demand.replicas:,} replicas of {demand.workers} workers"
    )
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, figure, note in _rows(demand, found):
        table.add_row(name, figure, note)
    console.print(table)
    console.print()
    limits = Table("limit", "used", "raised by", box=None, pad_edge=False)
    for limit in found.limits:
        limits.add_row(limit.name, f"{limit.used:.0%}", limit.moved_by)
    console.print(limits)
    console.print(
        f"\nThe first limit: {found.first_limit.name}. Costs as measured on {machine['date']}: {machine['cpu']}, "
        f"Redis {machine['redis']}, Python {machine['python']}.",
        soft_wrap=True,
    )


def _rows(demand: Demand, found: Plan) -> list[tuple[str, str, str]]:
    """Returns rows of name, figure and note."""
    redis = found.redis
    causes = ", ".join(
        f"{name} {us / max(redis.server_us, 1e-9):.0%}" for name, us in found.redis_parts.items() if us > 0
    )
    wait = "forever" if math.isinf(found.mean_wait) else f"{found.mean_wait:.2f} s on average"
    knows = "never" if math.isinf(found.notice_ms) else f"{found.notice_ms:.0f} ms"
    return [
        ("workers needed", f"{found.workers_needed:,}", f"{found.replicas_needed:,} replicas of {demand.workers}"),
        ("load of a worker", f"{found.worker_share:.0%}", "of its core"),
        ("CPU request of a pod", f"{math.ceil(1000 * found.pod_cores):,}m", "its load at 70 %; limit: WORKERS"),
        ("memory request of a pod", f"{found.pod_bytes // 2**20:,}Mi", "and up to 1 GiB a document being read"),
        ("Redis's main thread", f"{found.redis_share:.1%}", causes),
        ("Redis's commands", f"{redis.commands:,.0f}/s", "including those in scripts"),
        ("Redis's network", f"{_megabits(redis.bytes_in)} in, {_megabits(redis.bytes_out)} out", "Mbit/s"),
        ("Redis's memory", f"{found.redis_bytes / 2**20:,.0f} MiB", "maxmemory, with space for an AOF rewrite"),
        ("Redis's connections", f"{found.connections_idle:,} to {found.connections_most:,}", "idle; maximum"),
        ("generations", f"{found.generations:.3g}/s of {found.generation_seconds:.1f} s", ""),
        ("concurrent generations", f"{found.in_flight:.1f}", "Little's law"),
        ("GPUs", f"{found.gpus:,}", f"of {demand.slots} slots"),
        ("BULKHEAD_MAX_CONCURRENT", f"{found.bulkhead}", "for each URL"),
        ("wait for a slot", f"{found.waits:.0%} of them", wait),
        ("all see an open breaker", knows, "Redis's part of the delay"),
    ]


def _megabits(per_second: float) -> str:
    return f"{per_second * 8 / 1e6:,.1f}"


# -- Simulation --------------------------------------------------------------------------------------------------------


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
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
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
        rows = [_row(demand, seed + number, one) for demand, found in runs for number, one in enumerate(found)]
        typer.echo(json.dumps(json_value({"machine": known.machine, "runs": rows})))
    else:
        _show_runs(runs)


def _row(demand: Demand, seed: int, outcome: SimulationResult) -> dict[str, Any]:
    named = {"replicas": demand.replicas, "workers": demand.fleet, "rate": demand.rate, "seed": seed}
    return {**named, **asdict(outcome)}


def _show_runs(runs: list[tuple[Demand, list[SimulationResult]]]) -> None:
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
