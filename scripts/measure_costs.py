"""Measures what `ragherd plan` and `ragherd simulate` count with, and writes it as JSON.

    .venv/bin/python -m scripts.measure_costs costs.json [--full]
    .venv/bin/ragherd plan --costs costs.json

Needs the extras `embedded` and `dev`, and about 5 minutes; `--full`, with 100,000 entries and 10,000 chunks, 15. It
starts a Redis, a stand-in of Ollama and gunicorns of its own. All is CPU time: a busy machine changes it by a third or
so, a clock's time it would change by ten.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

from api.embedded.redis_server import embedded_redis
from api.redis_store.workers import LOOKS, SLOWEST
from scripts.costs import fleets, operations, requests, sizes
from scripts.costs.machine import machine
from scripts.costs.server import Server
from tests.stub_ollama import stub_process

REAL: Final = (1, 2, 4, 8)
VIRTUAL: Final = (50, 100, 200, 400)
ENTRIES: Final = ((1_000, 5_000, 20_000), (1_000, 5_000, 20_000, 100_000))
CHUNKS: Final = ((1_000, 3_000), (1_000, 3_000, 10_000))


def main() -> None:
    path, full = Path(sys.argv[1]), "--full" in sys.argv
    with embedded_redis(persistent=False) as redis, stub_process() as stub:
        server = Server(redis.url)
        costs: dict[str, Any] = {"machine": machine(server), "pace": {"looks": LOOKS, "slowest": SLOWEST}}
        costs["operations"], costs["wake"] = operations.run(redis.url, server)
        costs["coalescing"] = operations.coalescing()
        tell("operations", costs["operations"])
        costs["requests"] = requests.measure(redis.url, stub, server)
        tell("requests", costs["requests"])
        costs["idle"] = fleets.real(redis.url, stub.base_url, server, REAL)
        costs["virtual"] = fleets.virtual(redis.url, server, VIRTUAL)
        tell("idle fleets", {str(one["workers"]): one for one in (*costs["idle"], *costs["virtual"])})
    with embedded_redis(persistent=False) as redis:
        costs["sizes"] = sizes.run(redis.url, Server(redis.url), ENTRIES[full], CHUNKS[full])
    path.write_text(json.dumps(costs, indent=1) + "\n")
    print(f"\nwritten to {path}")


def tell(title: str, rows: dict[str, dict[str, Any]]) -> None:
    """One table."""
    print(f"\n{title}: {'server us':>32}{'commands':>10}{'worker us':>10}")
    for name, row in rows.items():
        commands = row.get("commands", row.get("operations", 0))
        print(f"  {name:30}{row['server_us']:12}{commands:10}{row.get('worker_us', ''):>10}", flush=True)


if __name__ == "__main__":
    main()
