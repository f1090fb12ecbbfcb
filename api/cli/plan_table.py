"""A plan as tables for a terminal."""

from __future__ import annotations

import math

from rich.console import Console
from rich.table import Table

from api.scaling.costs import Costs
from api.scaling.demand import Demand
from api.scaling.plan import Plan


def show(demand: Demand, costs: Costs, found: Plan) -> None:
    """Prints it."""
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
    limits = Table("limit", "used", "moved by", box=None, pad_edge=False)
    for limit in found.limits:
        limits.add_row(limit.name, f"{limit.used:.0%}", limit.moved_by)
    console.print(limits)
    console.print(
        f"\nThe first limit: {found.first_limit.name}. Costs as measured on {machine['date']}: {machine['cpu']}, "
        f"Redis {machine['redis']}, Python {machine['python']}.",
        soft_wrap=True,
    )


def rows(demand: Demand, found: Plan) -> list[tuple[str, str, str]]:
    """Name, figure, note."""
    redis = found.redis
    causes = ", ".join(
        f"{name} {us / max(redis.server_us, 1e-9):.0%}" for name, us in found.redis_parts.items() if us > 0
    )
    wait = "for ever" if math.isinf(found.mean_wait) else f"{found.mean_wait:.2f} s on average"
    knows = "never" if math.isinf(found.notice_ms) else f"{found.notice_ms:.0f} ms"
    return [
        ("workers needed", f"{found.workers_needed:,}", f"{found.replicas_needed:,} replicas of {demand.workers}"),
        ("a worker is busy", f"{found.worker_share:.0%}", "of its core"),
        ("Redis's main thread", f"{found.redis_share:.1%}", causes),
        ("Redis's commands", f"{redis.commands:,.0f}/s", "those inside scripts too"),
        ("Redis's network", f"{_megabits(redis.bytes_in)} in, {_megabits(redis.bytes_out)} out", "Mbit/s"),
        ("Redis's memory", f"{found.redis_bytes / 2**20:,.0f} MiB", "maxmemory, with room for a rewrite"),
        ("Redis's connections", f"{found.connections_idle:,} to {found.connections_most:,}", "idle; at most"),
        ("generations", f"{found.generations:.3g}/s of {found.generation_seconds:.1f} s", ""),
        ("under way at once", f"{found.in_flight:.1f}", "Little's law"),
        ("GPUs", f"{found.gpus:,}", f"of {demand.slots} slots"),
        ("BULKHEAD_MAX_CONCURRENT", f"{found.bulkhead}", "for each URL"),
        ("wait for a slot", f"{found.waits:.0%} of them", wait),
        ("a breaker opens: all know", knows, "Redis's share of it"),
    ]


def _megabits(a_second: float) -> str:
    return f"{a_second * 8 / 1e6:,.1f}"
