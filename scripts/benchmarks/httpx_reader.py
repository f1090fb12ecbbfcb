"""Reads streams of Ollama with httpx, line by line, as a program without Ragherd does.

Run as a process of its own. Prints its CPU microseconds and the seconds, each per stream.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence

import httpx


async def read(url: str, bodies: Sequence[str]) -> dict[str, float]:
    """Reads all streams at the same time."""
    async with httpx.AsyncClient(trust_env=False, timeout=60, limits=httpx.Limits(max_connections=None)) as client:
        used, began = time.process_time(), time.perf_counter()
        await asyncio.gather(*(_read(client, url, body) for body in bodies))
        cpu, seconds = time.process_time() - used, time.perf_counter() - began
    return {"cpu_us": cpu * 1e6 / len(bodies), "seconds": seconds / len(bodies)}


async def _read(client: httpx.AsyncClient, url: str, body: str) -> None:
    async with client.stream("POST", url, content=body) as answer:
        last = ""
        async for line in answer.aiter_lines():
            last = line
        assert json.loads(last)["done"], last


def main() -> None:
    import uvloop

    print(json.dumps(uvloop.run(read(sys.argv[1], json.load(sys.stdin)))))


if __name__ == "__main__":
    main()
