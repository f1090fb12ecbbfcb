"""Compares the cost model and the simulation with real fleets, as large as this machine allows.

    .venv/bin/python -m scripts.check_simulation costs.json

Idle operations and Redis CPU come from `scripts/measure_costs.py`. Breaker transitions are measured now, in one run for
all sizes: 2 to 16 real processes with only a breaker.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any, Final

from redis.asyncio import Redis

from api.embedded.redis_server import embedded_redis
from api.scaling import plan as redis_load
from api.scaling.costs import Costs, load_costs
from api.scaling.plan import Demand
from api.scaling.simulation import quantile, simulate
from tests.support.breaker_process import BreakerProcess

SIZES: Final = (2, 4, 8, 16)
TRANSITIONS: Final = 60


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("api/scaling/measured_costs.json")
    costs, raw = load_costs(path), json.loads(path.read_text())
    print("Idle load per worker and second: measured and modeled")
    print(f"{'workers':>10}{'commands':>12}{'model':>8}{'Redis us':>12}{'model':>8}{'real/model':>12}")
    for row in (*raw["idle"], *raw["virtual"]):
        print_idle(row, costs)
    print(f"\nDelay until a worker knows of a breaker transition (ms), {TRANSITIONS} transitions: measured, simulated")
    print(f"{'workers':>10}{'p50':>8}{'p99':>8}{'max':>8}   |{'p50':>8}{'p99':>8}{'max':>8}")
    asyncio.run(print_notices(costs))


def print_idle(row: dict[str, Any], costs: Costs) -> None:
    """Prints one fleet."""
    size = row["workers"]
    model = redis_load.idle(Demand(rate=0, replicas=1, workers=size), costs) * (1 / size)
    commands = f"{row['commands']:12.1f}" if "commands" in row else f"{'':12}"
    ratio = row["server_us"] / model.server_us / row.get("share", 1.0)
    print(f"{size:10}{commands}{model.commands:8.1f}{row['server_us']:12}{model.server_us:8.0f}{ratio:12.1f}")


async def print_notices(costs: Costs) -> None:
    """Prints real processes, and the simulation of as many workers."""
    for size in SIZES:
        with embedded_redis(persistent=False) as server:
            async with Redis.from_url(server.url) as redis:
                await redis.ping()
            delays = sorted(await real_notices(server.url, size))
        found = simulate(Demand(rate=0, replicas=1, workers=size), costs, seed=1, seconds=1.0, transitions=TRANSITIONS)
        simulated = (found.notice_p50, found.notice_p99, found.notice_most)
        columns = "".join(f"{quantile(delays, share):8.1f}" for share in (0.5, 0.99, 1.0))
        print(f"{size:10}{columns}   |{''.join(f'{one:8.1f}' for one in simulated)}", flush=True)


async def real_notices(url: str, size: int) -> list[float]:
    """Returns the milliseconds of each notice. Every worker must notice every transition."""
    workers = await asyncio.gather(*(BreakerProcess.start(url, {}, ("127.0.0.1", 1)) for _ in range(size)))
    for number in range(TRANSITIONS):
        await workers[0].ask("override", action="OPEN" if number % 2 == 0 else "CLOSED")
        await asyncio.sleep(0.1)
    replies = [await worker.ask("state") for worker in workers]
    await asyncio.gather(*(worker.stop() for worker in workers))
    delays = [heard["heard_ms"] - heard["at_ms"] for reply in replies for heard in reply["heard"]]
    assert len(delays) == size * TRANSITIONS
    return delays


if __name__ == "__main__":
    main()
