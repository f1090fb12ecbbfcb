"""`ragherd plan`: estimates the workers, Redis and GPUs for a load, based on measured costs."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from api.cli.main import USAGE_ERROR, exit_with
from api.scaling.costs import Costs, CostsUnreadable, load_costs
from api.scaling.plan import Capacity, Demand, Plan
from api.scaling.plan import plan as planned


def show(demand: Demand, costs: Costs, found: Plan) -> None:
    """Prints a plan as tables."""
    console, machine = Console(), costs.machine
    console.print(
        f"{demand.rate:g} requests/s, {demand.exact:.0%} exact and {demand.semantic:.0%} semantic hits, "
        f"{demand.replicas:,} replicas of {demand.workers} workers"
    )
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, figure, note in rows(demand, found):
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


def rows(demand: Demand, found: Plan) -> list[tuple[str, str, str]]:
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


CostsFile = Annotated[
    Path | None,
    typer.Option("--costs", help="File written by scripts/measure_costs.py. Without it, the costs in this release."),
]


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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
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
        show(demand, known, found)


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
