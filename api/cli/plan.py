"""`ragherd plan`: what a fleet needs for what it is asked, on the measured costs."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from api.cli.exits import UNUSABLE, end
from api.cli.plan_table import show
from api.scaling.costs import Costs, CostsUnreadable, load_costs
from api.scaling.demand import Demand
from api.scaling.limits import Capacity
from api.scaling.plan import plan as planned

CostsFile = Annotated[Path | None, typer.Option("--costs", help="Of scripts/measure_costs.py; else the release's.")]


def plan(
    rate: Annotated[float, typer.Option(min=0.0, help="Requests a second.")],
    exact: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share that is an exact hit.")] = 0.3,
    semantic: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share that is a semantic hit.")] = 0.2,
    refresh: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of hits that are refreshed.")] = 0.0,
    entries: Annotated[int, typer.Option(min=0, help="Cached answers.")] = 1000,
    chunks: Annotated[int, typer.Option(min=0, help="Chunks of documents; a document of 10 pages has about 30.")] = 0,
    replicas: Annotated[int, typer.Option(min=1)] = 2,
    workers: Annotated[int, typer.Option(min=1, help="Of each replica, a core each.")] = 4,
    backends: Annotated[int, typer.Option(min=1, help="URLs in OLLAMA_BASE_URL.")] = 1,
    embeds_on_ollama: Annotated[bool, typer.Option("--embeds-on-ollama", help="EMBEDDER=ollama.")] = False,
    answer_tokens: Annotated[int, typer.Option(min=1)] = 250,
    tokens_per_second: Annotated[float, typer.Option(min=0.001, help="Of one slot, all slots busy.")] = 40.0,
    first_token: Annotated[float, typer.Option(min=0.0, help="Seconds until it.")] = 0.5,
    slots: Annotated[int, typer.Option(min=1, help="OLLAMA_NUM_PARALLEL of one GPU.")] = 4,
    gpus: Annotated[int | None, typer.Option(min=1, help="GPUs there are; else as many as needed.")] = None,
    maxclients: Annotated[int, typer.Option(min=1, help="Of redis.conf.")] = 10_000,
    max_connections: Annotated[int, typer.Option(min=1, help="REDIS_MAX_CONNECTIONS.")] = 64,
    redis_gib: Annotated[float, typer.Option(min=0.001, help="Redis's memory.")] = 8.0,
    network_gbit: Annotated[float, typer.Option(min=0.001, help="Redis's link.")] = 10.0,
    costs: CostsFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """How many workers, how large a Redis and how many GPUs a fleet needs, and what gives out first."""
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
        raise end(str(error), UNUSABLE) from None
    found = planned(demand, known, capacity)
    if as_json:
        typer.echo(json.dumps(plain({"demand": asdict(demand), "machine": known.machine, "plan": asdict(found)})))
    else:
        show(demand, known, found)


def costs_or_exit(path: Path | None) -> Costs:
    """The costs, or the end of the command with one line."""
    try:
        return load_costs(path)
    except CostsUnreadable as error:
        raise end(str(error), UNUSABLE) from None


def plain(value: Any) -> Any:
    """What JSON can hold: infinity is null."""
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
