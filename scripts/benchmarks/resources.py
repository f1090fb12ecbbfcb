"""What does not depend on rivals: caches of two sizes, the memory of a worker, and its start."""

from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path
from typing import Any, Final

from api.embedded.redis_server import embedded_redis
from api.redis_store.connections import BatchingRedis
from api.redis_store.search_index import algorithm_for
from scripts.bench_cache import CONCURRENCY, Bench, measured
from scripts.benchmarks.load import Load
from scripts.benchmarks.place import Place, Server

EMBEDDERS: Final = {"plain": "ollama", "onnx": "onnx"}
KINDS: Final = {"memory": "Rss", "private": "Private_(?:Clean|Dirty)"}


def sizes(small: int, large: int, rounds: int, calls: int) -> dict[str, Any]:
    """Fills two Redis servers, and measures look-ups in both in turns."""
    with embedded_redis(persistent=False) as one, embedded_redis(persistent=False) as other:
        return asyncio.run(_sizes({"small": (one.url, small), "large": (other.url, large)}, rounds, calls))


async def _sizes(wanted: dict[str, tuple[str, int]], rounds: int, calls: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    async with (
        BatchingRedis.from_url(wanted["small"][0], max_connections=2 * CONCURRENCY) as one,
        BatchingRedis.from_url(wanted["large"][0], max_connections=2 * CONCURRENCY) as other,
    ):
        benches = {}
        for (name, (_, size)), redis in zip(wanted.items(), (one, other), strict=True):
            bench = benches[name] = Bench(redis, size, algorithm_for(size))
            used, _ = await bench.fill()
            found[name] = {"entries": size, "entry_bytes": used, "rounds": []}
        for _ in range(rounds):
            for name, bench in benches.items():
                exact, semantic = await measured(bench.exact, calls), await measured(bench.semantic, calls)
                found[name]["rounds"].append({"exact_ms": exact.p50, "semantic_ms": semantic.p50})
    return found


def processes(place: Place, rounds: int, requests: int) -> dict[str, Any]:
    """Measures workers without and with ONNX: megabytes after requests, and the seconds until ready.

    The time is from the start of gunicorn. After the first round, Redis has the index already.
    """
    found: dict[str, Any] = {"memory": {}, "private": {}, "starts": {name: [] for name in EMBEDDERS}}
    for number in range(rounds):
        for name, embedder in EMBEDDERS.items():
            began = time.perf_counter()
            with place.another_service(EMBEDDER=embedder) as server:
                found["starts"][name].append(time.perf_counter() - began)
                if number == rounds - 1:
                    use(place, server, requests)
                    for kind, parts in KINDS.items():
                        found[kind][name] = sum(megabytes(pid, parts) for pid in server.pids)
    return found


def use(place: Place, server: Server, requests: int) -> None:
    """Sends new questions, and all of them again."""
    bodies = [json.dumps({"question": f"Question {number}, to fill the memory?"}) for number in range(requests)]
    for _ in range(2):
        place.measured(server, Load(f"{server.url}/query", bodies))


def megabytes(pid: int, parts: str) -> float:
    """Returns the memory of a process in MB, summed over the parts of Linux's table that match `parts`."""
    found = re.findall(rf"^(?:{parts}):\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found, pid
    return sum(map(int, found)) * 1024 / 1e6
