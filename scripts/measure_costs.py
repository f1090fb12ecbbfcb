"""Measures the costs that `ragherd plan` and `ragherd simulate` use, and writes them as JSON.

    .venv/bin/python -m scripts.measure_costs costs.json [--full] [operations] [requests] [fleets] [sizes]
    .venv/bin/ragherd plan --rate 50 --costs costs.json

Measures the named parts, or all; the file keeps the others. Needs the extras `embedded` and `dev`, and about 5 minutes,
or 15 with `--full` (100,000 entries and 10,000 chunks). Starts its own Redis, Ollama stub and gunicorns. All figures
are CPU time, which other load changes by about a third; wall time would change tenfold.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from api.embedded.redis_server import embedded_redis
from api.redis_store.stores.fleet import FULL_PACE_WORKERS, SLOWEST
from scripts.costs import fleets, operations, requests, sizes
from scripts.costs.machine import machine
from scripts.costs.server import Server
from tests.stub_ollama import stub_process

REAL: Final = (1, 2, 4, 8)
VIRTUAL: Final = (50, 100, 200, 400)
ENTRIES: Final = ((1_000, 5_000, 20_000), (1_000, 5_000, 20_000, 100_000))
CHUNKS: Final = ((1_000, 3_000), (1_000, 3_000, 10_000))


Costs = dict[str, Any]


def main() -> None:
    path, wanted = Path(sys.argv[1]), [part for part in sys.argv[2:] if part != "--full"] or list(PARTS)
    costs: Costs = json.loads(path.read_text()) if path.exists() else {}
    for part in wanted:
        with embedded_redis(persistent=False) as redis:
            server = Server(redis.url)
            costs |= {"machine": machine(server), "pace": {"looks": FULL_PACE_WORKERS, "slowest": SLOWEST}}
            PARTS[part](redis.url, server, costs)
        path.write_text(json.dumps(costs, indent=1) + "\n")


def of_operations(url: str, server: Server, costs: Costs) -> None:
    """Measures each operation alone."""
    costs["operations"], costs["wake"] = operations.run(url, server)
    costs["coalescing"] = operations.coalescing()
    print_table("operations", costs["operations"])


def of_requests(url: str, server: Server, costs: Costs) -> None:
    """Measures questions over HTTP."""
    with stub_process() as stub:
        costs["requests"] = requests.measure(url, stub, server)
    print_table("requests", costs["requests"])


def of_fleets(url: str, server: Server, costs: Costs) -> None:
    """Measures workers without requests."""
    with stub_process() as stub:
        costs["idle"] = fleets.real(url, stub.base_url, server, REAL)
    costs["virtual"] = fleets.virtual(url, server, VIRTUAL)
    print_table("idle fleets", {str(one["workers"]): one for one in (*costs["idle"], *costs["virtual"])})


def of_sizes(url: str, server: Server, costs: Costs) -> None:
    """Measures caches and knowledge bases by size."""
    full = "--full" in sys.argv
    costs["sizes"] = sizes.run(url, server, ENTRIES[full], CHUNKS[full])
    for rows, size, name in (("entries", "entries", "similar"), ("chunks", "chunks", "retrieve")):
        print_table(f"{name}, by {size}", {str(one[size]): one[name] for one in costs["sizes"][rows]})


PARTS: Final[dict[str, Callable[[str, Server, Costs], None]]] = {
    "operations": of_operations,
    "requests": of_requests,
    "fleets": of_fleets,
    "sizes": of_sizes,
}


def print_table(title: str, rows: dict[str, dict[str, Any]]) -> None:
    """Prints one table."""
    print(f"\n{title:32}{'server us':>12}{'commands':>10}{'worker us':>10}")
    for name, row in rows.items():
        commands = row.get("commands", row.get("operations", 0))
        print(f"  {name:30}{row['server_us']:12}{commands:10}{row.get('worker_us', ''):>10}", flush=True)


if __name__ == "__main__":
    main()
