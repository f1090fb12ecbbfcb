"""Where a worker's time goes: py-spy samples it during a load, and each sample counts for a part of the program.

A sample counts for the part that its innermost known file belongs to, so that JSON or a lock counts for its caller.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from scripts.benchmarks.load import Load
from scripts.benchmarks.place import RIVALS, Place, Server

SAMPLER: Final = RIVALS / "bin" / "py-spy"
RATE: Final = 200
"""Samples per second."""
OTHER: Final = "other"
PARTS: Final = (
    ("writing to sockets", r"RequestResponseCycle\.send|StreamWriter\.writelines|SocketStream\.send"),
    ("Redis: commands and replies", r"redis/|hiredis|api/redis_store/"),
    ("embedding", r"api/embedders/|api/backends/embedder|onnxruntime|tokenizers"),
    ("calling the model: HTTP client", r"api/ollama/|httpx/|httpcore/|h11/|anyio/"),
    ("breaker, bulkhead, single flight, failover", r"api/(breaker|bulkhead|single_flight|backends)/"),
    ("counting, logs, history", r"api/observability/|prometheus_client/|structlog/|logging/"),
    ("the flow: cache, key, guards", r"api/(query|guards|quality|languages|knowledge|ports)/|api/values"),
    ("the endpoint and its middleware", r"api/endpoints/|api/app|api/cancellation"),
    ("FastAPI, Starlette, pydantic", r"fastapi/|starlette/|pydantic"),
    ("HTTP server and event loop", r"uvicorn|uvloop|asyncio/|worker_config/|gunicorn/"),
)
"""Names of parts, and their files or functions."""
_PARTS: Final = tuple((name, re.compile(pattern)) for name, pattern in PARTS)


def part_of(stack: str) -> str:
    """Returns the part of a stack such as `main (a.py:1);run (b.py:2)`, whose innermost frame is the last."""
    for frame in reversed(stack.split(";")):
        for name, pattern in _PARTS:
            if pattern.search(frame):
                return name
    return OTHER


def shares(lines: Iterable[str]) -> dict[str, float]:
    """Returns each part's share of the samples, the largest first. A line is a stack and the times it was seen."""
    seen = Counter[str]()
    for line in lines:
        stack, _, times = line.rpartition(" ")
        seen[part_of(stack)] += int(times)
    return {name: count / seen.total() for name, count in seen.most_common()}


def profiles(place: Place, server: Server, load: Load, misses: Sequence[str], seconds: float) -> dict[str, Any]:
    """Returns the shares of the parts for an exact hit and for a miss. Empty without the sampler."""
    if not SAMPLER.exists():
        return {}
    hits, new = replace(load, seconds=seconds), replace(load, bodies=list(misses), expect='"status":"miss"')
    return {
        "exact hit": sampled(server, lambda: place.measured(server, hits), seconds),
        "miss": sampled(server, lambda: place.measured(server, new), seconds),
    }


def sampled(server: Server, load: Callable[[], object], seconds: float) -> dict[str, float]:
    """Samples the worker's threads that run, while `load` makes it busy. Returns the shares of the parts."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "stacks.txt"
        command = [str(SAMPLER), "record", "--format", "raw", "--rate", str(RATE), "--nonblocking"]
        command += ["--duration", str(max(1, round(seconds))), "--output", str(file), "--pid", str(server.pids[0])]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as sampler:
            load()
            _, said = sampler.communicate(timeout=60)
        assert sampler.returncode == 0, said
        return shares(file.read_text().splitlines())
